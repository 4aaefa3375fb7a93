"""Example views: what the networks of a run see at a step, drawn again, and as a picture."""

import io
import math
from collections.abc import Mapping, Sequence

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor
from torch.nn import functional as F

from funmatch.core.render import render_view
from funmatch.data.batch import RenderedBatch
from funmatch.data.sources import Source
from funmatch.views.image_views import ImageViews
from funmatch.views.recipes import Fixed, Recipe
from funmatch.views.stream import Stream

_MIN_TILE_PX = 64  # smaller views are enlarged
_GAP_PX, _HEADING_PX = 4, 18


def example_views(
    source: Source,
    recipe: Recipe,
    *,
    sides: Mapping[str, int],
    batch_size: int,
    seed: int,
    step: int,
    number: int = 8,
) -> dict[str, Tensor]:
    """The first views of a step of a run, by network, "student" last.

    Args:
        source: the training images.
        recipe: draws the views, as in training.
        sides: side of the view of each network, pixels; "student" first.
        batch_size: number of examples in the global batch, as in training.
        seed: the key `seed`; the views are functions of it and the step.
        step: optimiser step, from 0.
        number: largest number of views of each network.

    Returns:
        uint8 [number, channels, side, side] each.
    """
    shares = [ranks for ranks in range(1, batch_size + 1) if batch_size % ranks == 0]
    ranks = max(ranks for ranks in shares if batch_size // ranks >= min(number, batch_size))
    stream = Stream(
        ImageViews(source, recipe, sides=sides), batch_size=batch_size, seed=seed, ranks=ranks
    )
    rendered = stream[step]
    assert isinstance(rendered, RenderedBatch)
    batch = rendered.mixed()
    teachers = [name for name in sides if name != "student"]
    seen = {name: batch.view(name) for name in (*teachers, "student")}
    if isinstance(recipe, Fixed):  # the teacher was evaluated before training, on these
        index = batch.index.numpy()
        view = next(iter(recipe.teacher_views(seed, *source.sizes(index))))
        seen |= {name: render_view(source.images(index), view, sides[name]) for name in teachers}
    return {
        name: views[:number].round().clamp(0, 255).to(torch.uint8) for name, views in seen.items()
    }


def contact_sheet(rows: Mapping[str, Tensor]) -> bytes:
    """A PNG with a row of views for each network, under its name.

    Args:
        rows: by network, uint8 [number, 1 or 3, side, side].
    """
    tiles = {name: _tiles(views) for name, views in rows.items()}
    width = max(sum(tile.width + _GAP_PX for tile in row) for row in tiles.values())
    height = sum(row[0].height + _HEADING_PX + _GAP_PX for row in tiles.values())
    sheet = Image.new("RGB", (width, height), "white")
    pen, font, top = ImageDraw.Draw(sheet), ImageFont.load_default(12), 0
    for name, row in tiles.items():
        pen.text((2, top + 2), f"{name} sees", fill="black", font=font)
        for column, tile in enumerate(row):
            sheet.paste(tile, (column * (tile.width + _GAP_PX), top + _HEADING_PX))
        top += row[0].height + _HEADING_PX + _GAP_PX
    file = io.BytesIO()
    sheet.save(file, "PNG")
    return file.getvalue()


def _tiles(views: Tensor) -> Sequence[Image.Image]:
    times = math.ceil(_MIN_TILE_PX / views.shape[-1])
    shown = F.interpolate(views.float(), scale_factor=times, mode="nearest").to(torch.uint8)
    pixels = np.moveaxis(shown.expand(-1, 3, -1, -1).numpy(), 1, -1)
    return [Image.fromarray(np.ascontiguousarray(tile)) for tile in pixels]
