"""A batch: one rank's share of a global batch, before and after rendering and mixing."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
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
    cuts: PendingViews | None = None
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
        views = {
            name: render_view(images, view, side) for name, (view, side) in self.cuts.views.items()
        }
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
