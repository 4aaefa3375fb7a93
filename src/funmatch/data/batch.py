"""A batch, one rank's share of a global batch, in three states: planned, rendered, mixed.

PlannedBatch -> RenderedBatch -> Batch. Networks and losses see the last one alone.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from operator import itemgetter
from typing import Any, Protocol, Self

import torch
from torch import Tensor

from funmatch.core import mixing
from funmatch.core.geometry import View
from funmatch.core.images import Images
from funmatch.core.render import render_view


class Rows(Protocol):
    """The input of a network for the examples of a batch: pixels, tokens, a clip, ...

    Anything with rows; a `Tensor` is. A dataclass of tensors is, with these four methods.
    """

    def __len__(self) -> int: ...

    def __getitem__(self, rows: slice, /) -> Self: ...

    def to(self, device: Any, *, non_blocking: bool = False) -> Self: ...

    def pin_memory(self) -> Self: ...


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

    def map_tensors(self, change: Callable[[Tensor], Tensor]) -> "Truth":
        """The same with every tensor changed."""
        partner = None if self.partner is None else change(self.partner)
        return replace(self, label=change(self.label), partner=partner)


@dataclass(frozen=True, kw_only=True)
class _UnmixedBatch:
    """What planned and rendered batches have in common.

    With a mixing coefficient there is one row more in front, the mixing partner of the first
    example of this rank: R = B + 1 rows for B examples. Otherwise R = B.

    Attributes:
        index: int64 [R], the examples' positions in their source.
        label: [R, ...] as the task defines it, or None where there are none.
        step: the optimiser step this batch is for.
        coefficient: weight of an example in its mix; its partner has 1 - coefficient. None: the
            views are not mixed.
        first: position of the first example in the global batch.
        counts: see `Batch`.
    """

    index: Tensor
    label: Tensor | None
    step: int
    coefficient: float | None = None
    first: int = 0
    counts: Mapping[str, float] = field(default_factory=dict)

    def pin_memory(self) -> Self:
        """Called by the data loader, so that the copy to a GPU can overlap with its work."""
        return self._each(Tensor.pin_memory)

    def _each(self, change: Callable[[Tensor], Tensor]) -> Self:
        label = None if self.label is None else change(self.label)
        return replace(self, index=change(self.index), label=label)


@dataclass(frozen=True, kw_only=True)
class PlannedBatch(_UnmixedBatch):
    """A batch whose views are drawn and still to be rendered, on the device of the images.

    Attributes:
        plan: by network, crop boxes and flips [R], and the side of the view in pixels. Networks
            that share a view have the same tuple.
        files: encoded images [R], where they are to be decoded on the device; see
            `image_files.on_device`.
    """

    plan: Mapping[str, tuple[View, int]]
    files: list[Tensor] | None = None

    def rendered(self, images: Images) -> "RenderedBatch":
        """The batch with its views rendered from the images of its rows [R]."""
        return RenderedBatch(
            index=self.index,
            label=self.label,
            step=self.step,
            coefficient=self.coefficient,
            first=self.first,
            counts=self.counts,
            views=_each_once(self.plan, lambda drawn: render_view(images, *drawn)),
        )


@dataclass(frozen=True, kw_only=True)
class RenderedBatch(_UnmixedBatch):
    """A batch whose views are rendered and not yet mixed.

    Attributes:
        views: by network, [R, ...]; for images uint8 [R, C, S, S].
    """

    views: Mapping[str, Rows]

    def to(self, device: torch.device | str, non_blocking: bool = False) -> "RenderedBatch":
        """The batch on another device."""
        return self._each(lambda rows: rows.to(device, non_blocking=non_blocking))

    def mixed(self) -> "Batch":
        """The batch with its views mixed, once, for all networks alike; tensors only."""
        index, label, views = self.index, self.label, self.views
        truth = None if label is None else Truth(label)
        if (coefficient := self.coefficient) is not None:
            # The first row is a partner only; rolled, it would meet the last one of this rank.
            views = _each_once(views, lambda view: mixing.mix(view, coefficient)[1:])
            index = index[1:]
            truth = None if label is None else Truth(label[1:], label[:-1], coefficient)
        return Batch(index, truth, self.step, views, first=self.first, counts=self.counts)

    def _each(self, change: Callable[[Any], Any]) -> Self:
        return replace(super()._each(change), views=_each_once(self.views, change))


@dataclass(frozen=True)
class Batch:
    """One rank's share of a global batch, or a piece of it, as networks and losses see it.

    Attributes:
        index: int64 [B], the examples' positions in their source.
        truth: labels of the rows and of their mixing partners; None where there are none.
        step: the optimiser step this batch is for; in evaluation the number of the batch.
        views: the input of each network by its name, [B, ...]; for images [B, C, S, S], uint8, or
            float in [0, 255] if mixed. Networks that share a view have the same object.
        first: position of the first example in the global batch.
        counts: by name, the number of things in the global batch over which losses are means,
            divided by the number of ranks: "rows", and whatever else the drawer counts. A piece has
            those of its whole batch.
    """

    index: Tensor
    truth: Truth | None
    step: int
    views: Mapping[str, Rows]
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

    def view(self, network: str) -> Any:
        """The input of a network, `Rows` of the type that it takes; for images [B, C, S, S].

        Raises:
            KeyError: no view was drawn for this network.
        """
        return self.views[network]

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
        return self._each(lambda rows: rows.to(device, non_blocking=non_blocking))

    def pin_memory(self) -> "Batch":
        """Called by the data loader, so that the copy to a GPU can overlap with its work."""
        return self._each(lambda rows: rows.pin_memory())

    def pieces(self, size: int | None) -> Iterator["Batch"]:
        """The batch in parts of at most `size` rows; see `mean`."""
        total = len(self.index)
        if size is None or size >= total:
            yield self
            return
        counts = {"rows": total, **self.counts}
        for start in range(0, total, size):
            piece = self._each(itemgetter(slice(start, start + size)))
            yield replace(piece, first=self.first + start, counts=counts)

    def _each(self, change: Callable[[Any], Any]) -> "Batch":
        return replace(
            self,
            index=change(self.index),
            truth=None if self.truth is None else self.truth.map_tensors(change),
            views=_each_once(self.views, change),
        )


def _each_once(views: Mapping[str, Any], change: Callable[[Any], Any]) -> dict[str, Any]:
    """Changes every view once: networks that share a view share the result."""
    changed = {key: change(view) for key, view in {id(v): v for v in views.values()}.items()}
    return {network: changed[id(view)] for network, view in views.items()}
