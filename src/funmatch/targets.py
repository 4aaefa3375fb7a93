"""What the student is to match: the teacher's word on a batch, asked now or kept from before."""

import hashlib
import json
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Protocol

import numpy as np
import safetensors.torch
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError
from torch import Tensor

from funmatch import files
from funmatch.evaluation import EvaluationStream, EvaluationViews
from funmatch.models.frozen import Frozen
from funmatch.models.network import Output
from funmatch.models.teacher import Teacher
from funmatch.recipes import Fixed
from funmatch.stream import Batch, Source, cut


class Targets(Protocol):
    """The teacher's output for a batch."""

    def __call__(self, batch: Batch) -> Output: ...


class Live:
    """Asks the teacher about its view of the batch."""

    def __init__(self, teacher: Teacher) -> None:
        self._teacher = teacher

    def __call__(self, batch: Batch) -> Output:
        return self._teacher(batch.view)


class Kept:
    """Looks up what the teacher said of each image, whatever the view.

    Args:
        teacher: whose word it is.
        logits: [K, N, C], of each of its members, one row per image of the source.
    """

    def __init__(self, teacher: Teacher, logits: Tensor) -> None:
        self._teacher, self._logits = teacher, logits

    def __call__(self, batch: Batch) -> Output:
        self._logits = self._logits.to(batch.index.device)
        return self._teacher.combined(self._logits[:, batch.index])


def on_fixed_views(
    teacher: Teacher,
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
    decides: dict[str, tuple[object, ...]] = {
        "centre": recipe.mild,
        "inception_ensemble": (seed, recipe.ensemble, recipe.min_area, recipe.flip),
    }
    law = (recipe.teacher_crop, *decides.get(recipe.teacher_crop, ()))

    everything = np.arange(len(source))
    sizes = source.sizes(everything)

    def ask(member: Frozen) -> Tensor:
        rows = np.array_split(everything, -(-len(source) // batch_size))
        return torch.cat([mean(member, some) for some in rows])

    def mean(member: Frozen, rows: NDArray[np.int64]) -> Tensor:
        images = source.images(rows)  # opened once, however many views
        total = torch.zeros(0)
        for number, view in enumerate(recipe.teacher_views(seed, *sizes), 1):
            logits = _ask(member, [cut(images, view[rows], member.side)], device)
            if number == 1:
                first, total = logits, logits.double().softmax(dim=-1)
            else:
                total += logits.double().softmax(dim=-1)
        return first if number == 1 else (total / number).log().float()

    return _kept(teacher, source, store, lambda member: ("fixed", *law), ask)


def on_evaluation_views(
    teacher: Teacher, source: Source, *, store: Path, batch_size: int, device: torch.device
) -> Kept:
    """The teacher's prediction of the evaluation view of every image, computed once and kept."""

    def ask(member: Frozen) -> Tensor:
        views = EvaluationViews(source, member.resize, member.side)
        stream = EvaluationStream(views, batch_size=batch_size)
        batches = (stream[number].view("teacher") for number in range(len(stream)))
        return _ask(member, batches, device)

    return _kept(teacher, source, store, lambda member: ("evaluation", member.resize), ask)


def _ask(teacher: Frozen, batches: Iterable[Tensor], device: torch.device) -> Tensor:
    return torch.cat([teacher(views.to(device)).logits.float().cpu() for views in batches])


def _kept(
    teacher: Teacher,
    source: Source,
    store: Path,
    law: Callable[[Frozen], Sequence[object]],
    ask: Callable[[Frozen], Tensor],
) -> Kept:
    """Logits under names that say which network saw which views of which images."""

    def stored(member: Frozen) -> Tensor:
        key = json.dumps([member.fingerprint(), source.fingerprint(), member.side, *law(member)])
        path = store / f"{hashlib.sha256(key.encode()).hexdigest()[:16]}.safetensors"
        content = files.once(path, lambda: safetensors.torch.save({"logits": ask(member)}))
        try:
            return safetensors.torch.load(content)["logits"]
        except SafetensorError as error:
            remedy = "remove it, the same command makes it again"
            raise ValueError(f"{path}: damaged; {remedy}") from error

    return Kept(teacher, torch.stack([stored(member) for member in teacher.members.values()]))
