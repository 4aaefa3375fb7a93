"""Evaluation views: the central crop of every image of a source, and their batches in order."""

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset

from funmatch.core import geometry
from funmatch.core.geometry import View
from funmatch.core.images import Images
from funmatch.core.render import evaluation_view
from funmatch.data.batch import Batch, Truth
from funmatch.data.sources import Source
from funmatch.views.image_views import TruthInView


class EvaluationViews:
    """The evaluation views of a source, as a source of images of one size.

    Args:
        source: the images.
        resize: shorter side of an image before the central crop, pixels.
        side: side of the crop, pixels.
        truth_in_view: of the task: the labels of the views; None: those of the images.
    """

    def __init__(
        self, source: Source, resize: int, side: int, truth_in_view: TruthInView | None = None
    ) -> None:
        self.classes, self._source = source.classes, source
        self._resize, self._side, self._truth_in_view = resize, side, truth_in_view

    def __len__(self) -> int:
        return len(self._source)

    def sizes(self, indices: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        sides = np.full(len(indices), self._side)
        return sides, sides

    def images(self, indices: NDArray[np.int64]) -> Images:
        images = self._source.images(indices)
        return Images.of(evaluation_view(i, resize=self._resize, crop=self._side) for i in images)

    def labels(self, indices: NDArray[np.int64]) -> Tensor | None:
        label = self._source.labels(indices)
        if label is None or self._truth_in_view is None:
            return label
        sizes = self._source.sizes(indices)
        boxes = geometry.centre(*sizes, resize=self._resize, crop=self._side)
        view = View(boxes, np.zeros(len(boxes), dtype=bool))
        return self._truth_in_view(label, view, self._side)

    def fingerprint(self) -> str:
        return f"{self._source.fingerprint()} {self._resize} {self._side}"


def evenly_spaced(source: Source, most: int) -> NDArray[np.int64]:
    """Indices of at most `most` images, spread over a source that may be sorted by class."""
    return np.linspace(0, len(source) - 1, min(most, len(source))).astype(np.int64)


class EvaluationStream(Dataset[Batch]):
    """Item k is the k-th batch of this rank, in the order of the source.

    Args:
        views: evaluation views, all of one size.
        batch_size: largest number of rows; the last batch may be smaller.
        rank: of this process; it takes every `ranks`-th batch.
        ranks: number of processes.

    Raises:
        ValueError: there are fewer images than ranks.
    """

    def __init__(
        self,
        views: Source,
        *,
        batch_size: int,
        rank: int = 0,
        ranks: int = 1,
    ) -> None:
        self._views = views
        if len(views) < ranks:
            raise ValueError(
                f"trainer.devices: {ranks} ranks share {len(views)} evaluation images; give fewer"
            )
        batch_size = min(batch_size, len(views) // ranks)  # no rank without a batch
        batches = [
            np.arange(start, min(start + batch_size, len(views)))
            for start in range(0, len(views), batch_size)
        ]
        self._batches = batches[rank::ranks]

    def __len__(self) -> int:
        return len(self._batches)

    def __getitem__(self, number: int) -> Batch:
        indices = self._batches[number]
        views = torch.stack(list(self._views.images(indices)))
        label = self._views.labels(indices)
        truth = None if label is None else Truth(label)
        return Batch(torch.from_numpy(indices), truth, number, {"student": views})
