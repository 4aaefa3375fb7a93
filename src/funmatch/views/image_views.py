"""The views of images for a training step: crops of each network, and where they are rendered."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from funmatch.core import geometry, mixing
from funmatch.core.geometry import Purpose, View
from funmatch.data.batch import PlannedBatch, RenderedBatch
from funmatch.data.sources import Encoded, Source
from funmatch.views.recipes import Recipe
from funmatch.views.stream import Share

# Labels of views from those of their images [B, ...], the views, and their side in pixels.
TruthInView = Callable[[Tensor, View, int], Tensor]


@dataclass(frozen=True)
class Placement:
    """Where training images are decoded and their views rendered.

    Attributes:
        render_on: "worker": in the processes of the data loader; "device": where the networks are.
        decode_on: "host": by the source of the images; "device": from encoded files, which then
            are rendered there too.

    Raises:
        ValueError: images decoded on the device are to be rendered in workers.
    """

    render_on: Literal["worker", "device"] = "worker"
    decode_on: Literal["host", "device"] = "host"

    def __post_init__(self) -> None:
        if (self.render_on, self.decode_on) == ("worker", "device"):
            raise ValueError("decode_on='device' needs render_on='device'")


class ImageViews:
    """Draws the crop of each image for each network, and the mixing coefficient.

    Args:
        source: the images.
        recipe: which view each network gets.
        sides: by network, side of its view in pixels, for all that take part in training.
        placement: where images are decoded and views rendered.
        truth_in_view: of the task: the labels of the student's views; None: those of the images.
    """

    def __init__(
        self,
        source: Source,
        recipe: Recipe,
        *,
        sides: Mapping[str, int],
        placement: Placement = Placement(),
        truth_in_view: TruthInView | None = None,
    ) -> None:
        self._source, self._recipe, self._sides = source, recipe, dict(sides)
        self._placement, self._truth_in_view = placement, truth_in_view

    @property
    def mixing(self) -> bool:
        return self._recipe.mixing

    def __len__(self) -> int:
        return len(self._source)

    def draw(self, share: Share) -> PlannedBatch | RenderedBatch:
        plan, coefficient = self._plan(share), None
        if self.mixing:
            rng = geometry.generator(share.seed, share.step, Purpose.MIXING)
            coefficient = mixing.folded_beta(rng, self._recipe.alpha)
        label = self._source.labels(share.index)
        if label is not None and self._truth_in_view is not None:
            label = self._truth_in_view(label, *plan["student"])
        batch = PlannedBatch(
            index=torch.from_numpy(share.index),
            label=label,
            step=share.step,
            coefficient=coefficient,
            first=share.first,
            counts={"rows": share.size},
            plan=plan,
        )
        if self._placement.render_on == "worker":
            return batch.rendered(self._source.images(share.index))
        if self._placement.decode_on == "device":
            assert isinstance(self._source, Encoded)
            return replace(batch, files=self._source.encoded(share.index))
        return batch

    def _plan(self, share: Share) -> dict[str, tuple[View, int]]:
        # Boxes are drawn for the global batch, but each depends on the size of its own image only.
        heights, widths = np.ones_like(share.batch), np.ones_like(share.batch)
        heights[share.rows], widths[share.rows] = self._source.sizes(share.index)
        drawn = self._recipe.views(share.seed, share.step, heights, widths)
        views = {role: view[share.rows] for role, view in drawn.items()}
        plan = {"student": (views["student"], self._sides["student"])}
        for network, side in self._sides.items():
            role = network.partition(".")[0]  # the teachers of an ensemble share their crop
            if role not in views and side == self._sides["student"]:
                plan[network] = plan["student"]  # the same view, rendered and copied once
            elif network != "student":
                plan[network] = views.get(role, views["student"]), side
        return plan
