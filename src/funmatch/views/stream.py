"""The endless stream of global batches: item t is everything that optimiser step t needs.

Order, crops, flips and mixing are functions of (seed, step). So a run goes on from any step at
once, ranks and workers take slices of one and the same batch, and any view can be drawn again.
"""

from collections.abc import Callable, Iterator
from dataclasses import replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset, Sampler

from funmatch.core import geometry, mixing
from funmatch.core.geometry import Purpose, View
from funmatch.data.batch import Batch, Brings, PendingViews, Truth
from funmatch.data.sources import Encoded, Source
from funmatch.views.recipes import Recipe

# The truth of views from that of their images [B, ...], the views, and their side in pixels.
TruthInView = Callable[[Tensor, View, int], Tensor]


class EpochPermutations:
    """Which images a step takes: permutations of all images, one after the other.

    Batches run on across the borders of epochs, so every image is seen equally often.

    Args:
        size: number of images.
        batch_size: of the global batch.
        seed: of the run.
    """

    def __init__(self, size: int, batch_size: int, seed: int) -> None:
        self.size, self.batch_size, self.seed = size, batch_size, seed
        self._permutations: dict[int, NDArray[np.int64]] = {}  # of the last epochs asked for

    def indices(self, step: int) -> NDArray[np.int64]:
        """The images of one global batch: int64 [batch_size]."""
        place, missing = step * self.batch_size, self.batch_size
        parts: list[NDArray[np.int64]] = []
        while missing:
            epoch, start = divmod(place, self.size)
            part = self._permutation(epoch)[start : start + missing]
            parts.append(part)
            place, missing = place + len(part), missing - len(part)
        return np.concatenate(parts)

    def _permutation(self, epoch: int) -> NDArray[np.int64]:
        if epoch not in self._permutations:
            if len(self._permutations) == 2:
                self._permutations.clear()
            rng = geometry.generator(self.seed, epoch, Purpose.ORDER)
            self._permutations[epoch] = rng.permutation(self.size)
        return self._permutations[epoch]


class Stream(Dataset[Batch]):
    """Item t is this rank's share of global batch t, not yet mixed.

    Args:
        source: the images.
        recipe: which view each network gets.
        sides: side of the view of each network that is asked in training, pixels; "student" first.
        batch_size: of the global batch, over all ranks.
        seed: of the run.
        rank: of this process.
        ranks: number of processes.
        brings: views; or cuts alone, for whoever has the images; or cuts and files, for whoever
            decodes them (see `Batch.rendered`).
        truth_in_view: of the task: the labels of the student's views; None: those of the images.

    Raises:
        ValueError: the ranks do not divide the batch, or the batch is larger than the source.
    """

    def __init__(
        self,
        source: Source,
        recipe: Recipe,
        *,
        sides: dict[str, int],
        batch_size: int,
        seed: int,
        rank: int = 0,
        ranks: int = 1,
        brings: Brings = "views",
        truth_in_view: TruthInView | None = None,
    ) -> None:
        if batch_size % ranks:
            raise ValueError(f"batch_size={batch_size} is not divisible by {ranks} ranks")
        if batch_size > len(source):
            raise ValueError(f"batch_size={batch_size} is more than the {len(source)} images")
        self._source, self._recipe, self._sides, self._seed = source, recipe, sides, seed
        self._brings, self._truth_in_view = brings, truth_in_view
        self._order = EpochPermutations(len(source), batch_size, seed)
        share = batch_size // ranks
        first = rank * share - recipe.mixing  # the partner of the first row comes along
        self._rows = np.arange(first, (rank + 1) * share) % batch_size
        self._first, self._share = rank * share, share

    def __getitem__(self, step: int) -> Batch:
        every = self._order.indices(step)
        indices = every[self._rows]
        # Boxes are drawn for the global batch, but each depends on the size of its own image only.
        heights, widths = np.ones_like(every), np.ones_like(every)
        heights[self._rows], widths[self._rows] = self._source.sizes(indices)
        drawn = self._recipe.views(self._seed, step, heights, widths)

        views: dict[str, tuple[View, int]] = {}
        for network, side in self._sides.items():
            role = network.partition(".")[0]  # the teachers of an ensemble share their crop
            if role in drawn or side != self._sides["student"]:
                view = drawn.get(role, drawn["student"])
                views[network] = (view[self._rows], side)

        label = self._source.labels(indices)
        if label is not None and self._truth_in_view is not None:
            label = self._truth_in_view(label, *views["student"])
        batch = Batch(
            torch.from_numpy(indices),
            None if label is None else Truth(label),
            step,
            {},
            cuts=PendingViews(indices, views),
            first=self._first,
            counts={"rows": self._share},
        )
        if self._brings == "views":
            batch = batch.rendered(self._source.images(indices))
        elif self._brings == "files":
            assert isinstance(self._source, Encoded)
            batch = replace(batch, files=self._source.encoded(indices))
        if not self._recipe.mixing:
            return batch
        draws = geometry.generator(self._seed, step, Purpose.MIXING)
        coefficient = mixing.folded_beta(draws, self._recipe.alpha)
        return replace(
            batch,
            index=batch.index[1:],
            truth=None if label is None else Truth(label[1:], label[:-1], coefficient),
            coefficient=coefficient,
        )


class Steps(Sampler[int]):
    """The steps still to do. Its length is that of the whole run.

    The trainer compares the length with its restored counter: were it the number of steps left, a
    run resumed in its first half would stop early without an error.
    """

    def __init__(self, start: int, total: int) -> None:
        self._start, self._total = start, total

    def __iter__(self) -> Iterator[int]:
        return iter(range(self._start, self._total))

    def __len__(self) -> int:
        return self._total
