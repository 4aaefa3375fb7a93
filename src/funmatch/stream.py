"""The endless stream of global batches: item t is everything that optimiser step t needs.

Order, crops, flips and mixing are functions of (seed, step). So a run goes on from any step at
once, ranks and workers take slices of one and the same batch, and any view can be drawn again.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from operator import itemgetter
from typing import Literal, Protocol, runtime_checkable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset, Sampler

from funmatch import geometry, mixing
from funmatch.geometry import Purpose
from funmatch.images import Images
from funmatch.recipes import Recipe, View
from funmatch.render import render_batch

Brings = Literal["views", "cuts", "files"]


@dataclass(frozen=True)
class Cuts:
    """Views that are still to be cut, where the images are.

    Attributes:
        rows: int64 [B], the images' places in their source.
        views: by network, what is cut from them, and the side in pixels.
    """

    rows: NDArray[np.int64]
    views: dict[str, tuple[View, int]]


@dataclass
class Batch:
    """One rank's share of a global batch.

    Attributes:
        index: int64 [B], the images' places in their source.
        label: int64 [B]; bool [B, classes] where several are right; or None where there are none.
        step: the optimiser step this batch is for.
        views: by network, uint8 [B, C, S, S], or float in [0, 255] once mixed. A network that is
            not named sees the student's.
        coefficient: of the mixing, or None without mixing. Until `mixed`, every view then has one
            row more in front: the partner of the first.
        partner_label: the labels of the mixing partners, in the same form.
        cuts: the views that are not rendered yet.
        files: what the images of the cuts are decoded from, where they are not at hand.
        first: the place of the first image in the global batch.
    """

    index: Tensor
    label: Tensor | None
    step: int
    views: dict[str, Tensor]
    coefficient: float | None = None
    partner_label: Tensor | None = None
    cuts: Cuts | None = None
    files: list[Tensor] | None = None
    first: int = 0

    def view(self, network: str) -> Tensor:
        """What a network sees, [B, C, S, S]."""
        return self.views.get(network, self.views["student"])

    def to(self, device: torch.device | str, non_blocking: bool = False) -> "Batch":
        """The batch on another device."""
        return self._each(lambda tensor: tensor.to(device, non_blocking=non_blocking))

    def pin_memory(self) -> "Batch":
        """Called by the data loader, so that the copy to a GPU can overlap with its work."""
        return self._each(Tensor.pin_memory)

    def _each(self, change: Callable[[Tensor], Tensor]) -> "Batch":
        def optional(tensor: Tensor | None) -> Tensor | None:
            return None if tensor is None else change(tensor)

        return replace(
            self,
            index=change(self.index),
            label=optional(self.label),
            views={network: change(view) for network, view in self.views.items()},
            partner_label=optional(self.partner_label),
        )

    def rendered(self, images: Images) -> "Batch":
        """The batch with its views cut from the images of its rows."""
        assert self.cuts is not None
        views = {name: cut(images, view, side) for name, (view, side) in self.cuts.views.items()}
        return replace(self, views=views, cuts=None, files=None)

    def pieces(self, size: int | None) -> Iterator[tuple["Batch", float]]:
        """The mixed batch in parts of at most `size` images, each with its share of the batch."""
        total = len(self.index)
        if size is None or size >= total:
            yield self, 1.0
            return
        for start in range(0, total, size):
            piece = self._each(itemgetter(slice(start, start + size)))
            yield replace(piece, first=self.first + start), len(piece.index) / total

    def mixed(self) -> "Batch":
        """The batch with its views mixed, once, for all networks alike."""
        if self.coefficient is None:
            return self
        # The first row is there as a partner only; rolled, it would meet the last one of this rank.
        views = {n: mixing.mix(v, self.coefficient)[1:] for n, v in self.views.items()}
        return replace(self, views=views)


class Source(Protocol):
    """A set of images: what the stream and the evaluation read from."""

    classes: tuple[str, ...]

    def __len__(self) -> int: ...

    def sizes(self, indices: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Heights and widths [B] in pixels."""
        ...

    def images(self, indices: NDArray[np.int64]) -> Images:
        """The decoded images, [B]."""
        ...

    def labels(self, indices: NDArray[np.int64]) -> Tensor | None:
        """int64 [B]; bool [B, classes] where several are right; or None where there are none."""
        ...

    def fingerprint(self) -> str:
        """A digest of images and labels."""
        ...


@runtime_checkable
class Encoded(Protocol):
    """A source whose images may be decoded elsewhere."""

    def encoded(self, indices: NDArray[np.int64]) -> list[Tensor]:
        """Whatever they are decoded from."""
        ...


class Order:
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
    ) -> None:
        if batch_size % ranks:
            raise ValueError(f"batch_size={batch_size} is not divisible by {ranks} ranks")
        if batch_size > len(source):
            raise ValueError(f"batch_size={batch_size} is more than the {len(source)} images")
        self._source, self._recipe, self._sides, self._seed = source, recipe, sides, seed
        self._brings = brings
        self._order = Order(len(source), batch_size, seed)
        share = batch_size // ranks
        first = rank * share - recipe.mixing  # the partner of the first row comes along
        self._rows = np.arange(first, (rank + 1) * share) % batch_size
        self._first = rank * share

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
        cuts = Cuts(indices, views)
        batch = Batch(torch.from_numpy(indices), label, step, {}, cuts=cuts, first=self._first)
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
            label=None if label is None else label[1:],
            partner_label=None if label is None else label[:-1],
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


def cut(images: Images, view: View, side: int) -> Tensor:
    """The views of a batch of images: uint8 [B, C, side, side]."""
    return render_batch(images, view.boxes, side, view.flips)
