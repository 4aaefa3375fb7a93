"""What the student is to match: the teacher's word on a batch, asked now or kept from before."""

import hashlib
import json
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Protocol

import numpy as np
import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor

from funmatch import files
from funmatch.models.frozen import Frozen
from funmatch.models.network import Output
from funmatch.recipes import Fixed
from funmatch.stream import Batch, EvaluationStream, Source, cut


class Targets(Protocol):
    """The teacher's output for a batch."""

    def __call__(self, batch: Batch) -> Output: ...


class Live:
    """Asks the teacher about its view of the batch."""

    def __init__(self, teacher: Frozen) -> None:
        self._teacher = teacher

    def __call__(self, batch: Batch) -> Output:
        return self._teacher(batch.view("teacher"))


class Kept:
    """Looks up what the teacher said of each image, whatever the view.

    Args:
        logits: [N, C], one row per image of the source.
    """

    def __init__(self, logits: Tensor) -> None:
        self._logits = logits

    def __call__(self, batch: Batch) -> Output:
        self._logits = self._logits.to(batch.index.device)
        return Output(self._logits[batch.index])


def on_fixed_views(
    teacher: Frozen,
    source: Source,
    recipe: Fixed,
    *,
    seed: int,
    store: Path,
    batch_size: int,
    device: torch.device,
) -> Kept:
    """The teacher's prediction of every image, over the views that the recipe fixes.

    Over several views it is the mean of the probabilities, kept as its logarithm. It is computed by
    the first run that needs it and kept in `store`.
    """

    def compute() -> Tensor:
        everything = np.arange(len(source))
        total = torch.zeros(0)
        for number, view in enumerate(recipe.teacher_views(seed, *source.sizes(everything)), 1):
            rows = np.array_split(everything, -(-len(source) // batch_size))
            batches = (cut(source.images(r), view[r], teacher.side) for r in rows)
            logits = _ask(teacher, batches, device)
            if number == 1:
                first, total = logits, logits.double().softmax(dim=-1)
            else:
                total += logits.double().softmax(dim=-1)
        return first if number == 1 else (total / number).log().float()

    ensemble = (seed, recipe.ensemble, recipe.min_area, recipe.flip)
    law = (recipe.teacher_crop, *(ensemble if recipe.teacher_crop == "inception_ensemble" else ()))
    return Kept(_stored(store, teacher, source, ("fixed", *law), compute))


def on_evaluation_views(
    teacher: Frozen, source: Source, *, store: Path, batch_size: int, device: torch.device
) -> Kept:
    """The teacher's prediction of the evaluation view of every image, computed once and kept."""
    resolution = (teacher.resize, teacher.side)

    def compute() -> Tensor:
        stream = EvaluationStream(source, {"teacher": resolution}, batch_size=batch_size)
        batches = (stream[number].views["teacher"] for number in range(len(stream)))
        return _ask(teacher, batches, device)

    return Kept(_stored(store, teacher, source, ("evaluation", *resolution), compute))


def _ask(teacher: Frozen, batches: Iterable[Tensor], device: torch.device) -> Tensor:
    return torch.cat([teacher(views.to(device)).logits.float().cpu() for views in batches])


def _stored(
    store: Path,
    teacher: Frozen,
    source: Source,
    law: Sequence[object],
    compute: Callable[[], Tensor],
) -> Tensor:
    """Logits [N, C] under a name that says which teacher saw which views of which images."""
    key = json.dumps([teacher.fingerprint(), source.fingerprint(), teacher.side, *law])
    path = store / f"{hashlib.sha256(key.encode()).hexdigest()[:16]}.safetensors"
    content = files.once(path, lambda: safetensors.torch.save({"logits": compute()}))
    try:
        return safetensors.torch.load(content)["logits"]
    except SafetensorError as error:
        raise ValueError(f"{path}: damaged; remove it, the same command makes it again") from error
