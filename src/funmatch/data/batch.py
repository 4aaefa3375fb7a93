"""A batch: one rank's share of a global batch, before and after rendering and mixing."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from operator import itemgetter
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from funmatch.core import mixing
from funmatch.core.geometry import View
from funmatch.core.images import Images
from funmatch.core.render import render_view

Brings = Literal["views", "cuts", "files"]


@dataclass(frozen=True)
class Truth:
    """The labels of a batch's rows and, under mixing, those of their mixing partners.

    Attributes:
        label: [B, ...] as the task defines it: int64 [B] class numbers, bool [B, classes] where
            several are right.
        partner: of the mixing partners, in the same form; None without mixing.
        coefficient: weight of `label`; `partner` has 1 - coefficient.
    """

    label: Tensor
    partner: Tensor | None = None
    coefficient: float = 1.0

    def weighted(self, loss: Callable[[Tensor], Tensor]) -> Tensor:
        """A loss to the labels, weighted between both mixing partners as their views are.

        Args:
            loss: from labels like `label`: per example, or its mean.
        """
        own = loss(self.label)
        if self.partner is None:
            return own
        return self.coefficient * own + (1 - self.coefficient) * loss(self.partner)

    def each(self, change: Callable[[Tensor], Tensor]) -> "Truth":
        """The same with every tensor changed."""
        partner = None if self.partner is None else change(self.partner)
        return replace(self, label=change(self.label), partner=partner)


@dataclass(frozen=True)
class PendingViews:
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
        truth: labels of the rows and of their mixing partners; None where there are none.
        step: the optimiser step this batch is for.
        views: by network, uint8 [B, C, S, S], or float in [0, 255] once mixed. A network that is
            not named sees the student's.
        coefficient: of the mixing, or None without mixing. Until `mixed`, every view then has one
            row more in front: the partner of the first.
        cuts: the views that are not rendered yet.
        files: what the images of the cuts are decoded from, where they are not at hand.
        first: the place of the first image in the global batch.
        counts: by name, the number of things in the global batch over which losses are means,
            divided by the number of ranks: "rows", and what else whoever draws the batch counts.
            A piece holds those of its whole batch.
    """

    index: Tensor
    truth: Truth | None
    step: int
    views: dict[str, Tensor]
    coefficient: float | None = None
    cuts: PendingViews | None = None
    files: list[Tensor] | None = None
    first: int = 0
    counts: Mapping[str, float] = field(default_factory=dict)

    @property
    def label(self) -> Tensor | None:
        """The labels of a batch that is not mixed, or None where there are none.

        Raises:
            ValueError: the batch is mixed: a loss from these labels alone would be wrong.
        """
        if self.truth is None:
            return None
        if self.truth.partner is not None:
            raise ValueError(
                "a mixed batch has no label of its own; use task.label_loss(prediction, "
                "batch.truth), which weighs the labels of both mixing partners, or recipe.mixing="
                "false"
            )
        return self.truth.label

    def view(self, network: str) -> Tensor:
        """What a network sees, [B, C, S, S]."""
        return self.views.get(network, self.views["student"])

    def mean(self, values: Tensor, *, of: str = "rows", mask: Tensor | None = None) -> Tensor:
        """The part of this piece and rank in the mean of a loss over the global batch.

        It is the sum of the values over their number in the global batch. So the losses of all
        pieces add up to the loss of the step, and their gradients, averaged over the ranks, to its
        gradient, however uneven the pieces are.

        Args:
            values: [N], of what is counted in this piece.
            of: their name in `counts`.
            mask: bool [N], the values that count; None: all.

        Returns:
            Scalar; 0 if nothing of the global batch counts.

        Raises:
            ValueError: the batch does not count such things.
        """
        counts = {"rows": len(self.index), **self.counts}
        if of not in counts:
            raise ValueError(f"of={of!r}: this batch counts {', '.join(counts)}")
        values = values if mask is None else values[mask]
        count = counts[of]
        if count == len(values) > 0:  # all of the batch, rounded as each device rounds a mean
            return values.mean()
        return values.sum() / count if count else values.sum()

    def to(self, device: torch.device | str, non_blocking: bool = False) -> "Batch":
        """The batch on another device."""
        return self._each(lambda tensor: tensor.to(device, non_blocking=non_blocking))

    def pin_memory(self) -> "Batch":
        """Called by the data loader, so that the copy to a GPU can overlap with its work."""
        return self._each(Tensor.pin_memory)

    def _each(self, change: Callable[[Tensor], Tensor]) -> "Batch":
        return replace(
            self,
            index=change(self.index),
            truth=None if self.truth is None else self.truth.each(change),
            views={network: change(view) for network, view in self.views.items()},
        )

    def rendered(self, images: Images) -> "Batch":
        """The batch with its views cut from the images of its rows."""
        assert self.cuts is not None
        views = {
            name: render_view(images, view, side) for name, (view, side) in self.cuts.views.items()
        }
        return replace(self, views=views, cuts=None, files=None)

    def pieces(self, size: int | None) -> Iterator["Batch"]:
        """The mixed batch in parts of at most `size` images; see `mean`."""
        total = len(self.index)
        if size is None or size >= total:
            yield self
            return
        counts = {"rows": total, **self.counts}
        for start in range(0, total, size):
            piece = self._each(itemgetter(slice(start, start + size)))
            yield replace(piece, first=self.first + start, counts=counts)

    def mixed(self) -> "Batch":
        """The batch with its views mixed, once, for all networks alike."""
        if self.coefficient is None:
            return self
        # The first row is there as a partner only; rolled, it would meet the last one of this rank.
        views = {n: mixing.mix(v, self.coefficient)[1:] for n, v in self.views.items()}
        return replace(self, views=views)
