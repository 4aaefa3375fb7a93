"""What the student is to match: the teacher's word on a batch, asked now or kept from before."""

from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from funmatch.core.render import render_view
from funmatch.data.batch import Batch
from funmatch.data.sources import Source
from funmatch.models.frozen import Frozen
from funmatch.models.network import Output
from funmatch.models.teacher import Teacher
from funmatch.targets.base import Targets, store_metadata
from funmatch.targets.store import LogitStore
from funmatch.views.evaluation_views import EvaluationViews
from funmatch.views.recipes import Fixed


class PerImageTargets(Targets):
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
) -> PerImageTargets:
    """The teacher's prediction of every image, over the views that the recipe fixes.

    Over several views it is the mean of the probabilities, kept as its logarithm. It is computed by
    the first run that needs it and kept in `store`.
    """
    everything = np.arange(len(source))
    sizes = cache(lambda: source.sizes(everything))  # of millions of files it takes minutes

    def mean(member: Frozen, rows: NDArray[np.int64]) -> Tensor:
        images = source.images(rows)  # opened once, however many views
        total = torch.zeros(0)
        views = recipe.teacher_views(seed, *(sizes() if recipe.drawn else source.sizes(rows)))
        if recipe.drawn:
            views = (view[rows] for view in views)
        for number, view in enumerate(views, 1):
            logits = _ask(member, render_view(images, view, member.side), device)
            if number == 1:
                first, total = logits, logits.double().softmax(dim=-1)
            else:
                total += logits.double().softmax(dim=-1)
        return first if number == 1 else (total / number).log().float()

    pieces = np.array_split(everything, -(-len(source) // batch_size))
    about = {"kind": "fixed", **recipe.law(seed)}
    return _kept(teacher, source, store, lambda member: about, pieces, mean)


def on_evaluation_views(
    teacher: Teacher, source: Source, *, store: Path, batch_size: int, device: torch.device
) -> PerImageTargets:
    """The teacher's prediction of the evaluation view of every image, computed once and kept."""

    def ask(member: Frozen, rows: NDArray[np.int64]) -> Tensor:
        views = EvaluationViews(source, member.resize, member.side).images(rows)
        return _ask(member, torch.stack(list(views)), device)

    everything = np.arange(len(source))
    pieces = np.split(everything, range(batch_size, len(source), batch_size))

    def about(member: Frozen) -> dict[str, Any]:
        return {"kind": "evaluation", "resize": member.resize}

    return _kept(teacher, source, store, about, pieces, ask)


def _ask(member: Frozen, views: Tensor, device: torch.device) -> Tensor:
    return member(views.to(device)).logits.float().cpu()


def _kept(
    teacher: Teacher,
    source: Source,
    store: Path,
    about: Callable[[Frozen], Mapping[str, Any]],
    pieces: list[NDArray[np.int64]],
    ask: Callable[[Frozen, NDArray[np.int64]], Tensor],
) -> PerImageTargets:
    """Every member's logits of every image; what is recorded is not asked again."""

    def logits(member: Frozen) -> Tensor:
        record = LogitStore(store, {**store_metadata(member, source), **about(member)}, "float32")
        with record.lock():
            for piece in pieces:
                first = int(piece[0])
                if not record.there(slice(first, first + len(piece))).all():
                    record.write(first, record.packed(ask(member, piece)))
            found = record.read(slice(0, len(source)))
        assert found is not None
        return found

    return PerImageTargets(
        teacher, torch.stack([logits(member) for member in teacher.members.values()])
    )
