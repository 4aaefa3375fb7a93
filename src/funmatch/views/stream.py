"""The endless stream of global batches: item t is everything that optimiser step t needs.

Order, views and mixing are functions of (seed, step). So a run resumes at any step at once, ranks
and workers take slices of one and the same batch, and any view can be drawn again.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray
from torch.utils.data import Dataset, Sampler

from funmatch.core import geometry
from funmatch.core.geometry import Purpose
from funmatch.data.batch import PlannedBatch, RenderedBatch


@dataclass(frozen=True)
class Share:
    """One rank's share of the global batch of a step.

    Attributes:
        seed: the key `seed`; whatever is drawn is a function of it and the step.
        step: the optimiser step, from 0.
        batch: int64 [G], the examples of the global batch by their positions in the source.
        rows: int64 [R], the positions of the share in the global batch; under mixing the first
            one is that of the mixing partner of the first example.
        first: position in the global batch of the first example.
        size: number of examples, B.
    """

    seed: int
    step: int
    batch: NDArray[np.int64]
    rows: NDArray[np.int64]
    first: int
    size: int

    @property
    def index(self) -> NDArray[np.int64]:
        """The examples of the share, int64 [R]."""
        return self.batch[self.rows]


class BatchDrawer(Protocol):
    """Draws the views of a batch: of images (`ImageViews`), or of whatever else has rows."""

    @property
    def mixing(self) -> bool:
        """Whether examples are mixed; then a share comes with one row more in front."""
        ...

    def __len__(self) -> int:
        """Number of examples in the source."""
        ...

    def draw(self, share: Share) -> PlannedBatch | RenderedBatch:
        """The share of a rank, drawn as a function of seed and step, the same for all ranks.

        Random numbers are drawn for the whole global batch, so that they do not depend on the
        number of ranks.
        """
        ...


class EpochPermutations:
    """Which examples a step takes: permutations of all examples, one after the other.

    Batches run on across the borders of epochs, so every example is seen equally often.

    Args:
        size: number of examples.
        batch_size: number of examples in the global batch.
        seed: the key `seed`; the order of an epoch is a function of it and the epoch.
    """

    def __init__(self, size: int, batch_size: int, seed: int) -> None:
        self.size, self.batch_size, self.seed = size, batch_size, seed
        self._permutations: dict[int, NDArray[np.int64]] = {}  # of the last epochs read

    def indices(self, step: int) -> NDArray[np.int64]:
        """The examples of one global batch: int64 [batch_size]."""
        position, missing = step * self.batch_size, self.batch_size
        parts: list[NDArray[np.int64]] = []
        while missing:
            epoch, start = divmod(position, self.size)
            part = self._permutation(epoch)[start : start + missing]
            parts.append(part)
            position, missing = position + len(part), missing - len(part)
        return np.concatenate(parts)

    def _permutation(self, epoch: int) -> NDArray[np.int64]:
        if epoch not in self._permutations:
            if len(self._permutations) == 2:
                self._permutations.clear()
            rng = geometry.generator(self.seed, epoch, Purpose.ORDER)
            self._permutations[epoch] = rng.permutation(self.size)
        return self._permutations[epoch]


class Stream(Dataset[PlannedBatch | RenderedBatch]):
    """Item t is this rank's share of global batch t, not yet mixed.

    Args:
        views: draws the views of a share.
        batch_size: number of examples in the global batch, over all ranks.
        seed: the key `seed`; order and views are functions of it and the step.
        rank: number of this process, from 0.
        ranks: number of processes; it divides `batch_size`.

    Raises:
        ValueError: the ranks do not divide the batch, or the batch is larger than the source.
    """

    def __init__(
        self, views: BatchDrawer, *, batch_size: int, seed: int, rank: int = 0, ranks: int = 1
    ) -> None:
        if batch_size % ranks:
            raise ValueError(f"batch_size={batch_size} is not divisible by {ranks} ranks")
        if batch_size > len(views):
            raise ValueError(f"batch_size={batch_size} is more than the {len(views)} images")
        self._views, self._seed = views, seed
        self._order = EpochPermutations(len(views), batch_size, seed)
        self._size = batch_size // ranks
        self._first = rank * self._size
        # The mixing partner of the first row comes along.
        rows = np.arange(self._first - views.mixing, self._first + self._size)
        self._rows = rows % batch_size

    def __getitem__(self, step: int) -> PlannedBatch | RenderedBatch:
        batch = self._order.indices(step)
        share = Share(self._seed, step, batch, self._rows, self._first, self._size)
        return self._views.draw(share)


class Steps(Sampler[int]):
    """Sampler of the remaining steps. Its length is that of the whole run.

    The trainer compares the length with its restored counter: if it were the number of remaining
    steps, a run resumed in its first half would stop early without an error.
    """

    def __init__(self, start: int, total: int) -> None:
        self._start, self._total = start, total

    def __iter__(self) -> Iterator[int]:
        return iter(range(self._start, self._total))

    def __len__(self) -> int:
        return self._total
