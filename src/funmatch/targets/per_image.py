"""Teacher targets that are computed once per image, stored, and looked up by index."""

import math
from collections.abc import Callable, Iterator, Mapping
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
from funmatch.tasks.base import Task
from funmatch.views.evaluation_views import EvaluationViews
from funmatch.views.recipes import Fixed


class PerImageTargets(Targets):
    """Looks up the teacher's prediction of each image, the same for every view of it.

    Args:
        teacher: combines the members' predictions.
        predictions: [K, N, ...], for each of its K members one row per image of the source.
    """

    def __init__(self, teacher: Teacher, predictions: Tensor) -> None:
        self._teacher, self._predictions = teacher, predictions

    def __call__(self, batch: Batch) -> Output:
        self._predictions = self._predictions.to(batch.index.device)
        return self._teacher.combine_predictions(self._predictions[:, batch.index])


def on_fixed_views(
    teacher: Teacher,
    source: Source,
    recipe: Fixed,
    task: Task,
    *,
    seed: int,
    store: Path,
    batch_size: int,
    device: torch.device,
) -> PerImageTargets:
    """The teacher's prediction of every image, over the fixed views of the recipe.

    Over several views it is the task's average. The first run that needs the predictions computes
    them, and later ones read them.

    Args:
        teacher: its members are evaluated one by one.
        source: the training images.
        recipe: draws the teacher's views.
        task: averages predictions over views, and stores them as rows.
        seed: the key `seed`; random views of the teacher are functions of it.
        store: folder of stored predictions.
        batch_size: images per pass of a member.
        device: where the teacher is evaluated.
    """
    everything = np.arange(len(source))
    sizes = cache(lambda: source.sizes(everything))  # of millions of files it takes minutes

    def predictions(member: Frozen, rows: NDArray[np.int64]) -> Iterator[Tensor]:
        images = source.images(rows)  # opened once, however many views
        views = recipe.teacher_views(
            seed, *(sizes() if recipe.random_teacher_views else source.sizes(rows))
        )
        for view in views:
            shown = view[rows] if recipe.random_teacher_views else view
            yield _predict(member, render_view(images, shown, member.side), device)

    def mean(member: Frozen, rows: NDArray[np.int64]) -> Tensor:
        return task.view_average(predictions(member, rows))

    pieces = np.array_split(everything, math.ceil(len(source) / batch_size))
    metadata = {"kind": "fixed", **recipe.view_settings(seed)}
    return _stored(teacher, source, task, store, lambda member: metadata, pieces, mean)


def on_evaluation_views(
    teacher: Teacher,
    source: Source,
    task: Task,
    *,
    store: Path,
    batch_size: int,
    device: torch.device,
) -> PerImageTargets:
    """The teacher's prediction of the evaluation view of every image, computed once and stored.

    Args:
        teacher: each member sees an evaluation view of its own size.
        source: the images.
        task: stores predictions as rows.
        store: folder of stored predictions.
        batch_size: images per pass of a member.
        device: where the teacher is evaluated.
    """

    def predict(member: Frozen, rows: NDArray[np.int64]) -> Tensor:
        views = EvaluationViews(source, member.resize, member.side).images(rows)
        return _predict(member, torch.stack(list(views)), device)

    everything = np.arange(len(source))
    pieces = np.split(everything, range(batch_size, len(source), batch_size))

    def metadata(member: Frozen) -> dict[str, Any]:
        return {"kind": "evaluation", "resize": member.resize}

    return _stored(teacher, source, task, store, metadata, pieces, predict)


def _predict(member: Frozen, views: Tensor, device: torch.device) -> Tensor:
    return member(views.to(device)).prediction.float().cpu()


def _stored(
    teacher: Teacher,
    source: Source,
    task: Task,
    store: Path,
    metadata: Callable[[Frozen], Mapping[str, Any]],
    pieces: list[NDArray[np.int64]],
    predict: Callable[[Frozen, NDArray[np.int64]], Tensor],
) -> PerImageTargets:
    """Every member's predictions of every image; those in the store are not computed again."""

    def predictions(member: Frozen) -> Tensor:
        described = {**store_metadata(member, source), **metadata(member)}
        record = LogitStore(store, described, "float32")
        with record.lock():
            for piece in pieces:
                first = int(piece[0])
                if not record.is_stored(slice(first, first + len(piece))).all():
                    record.write(first, record.encode(task.to_rows(predict(member, piece))))
            rows = record.read(slice(0, len(source)))
        assert rows is not None
        return task.from_rows(rows)

    return PerImageTargets(
        teacher, torch.stack([predictions(member) for member in teacher.members.values()])
    )
