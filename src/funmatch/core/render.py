"""Rendering: crop, bilinear resize and flip of uint8 images into uint8 views.

The arithmetic follows TensorFlow's kernels in float32, and the result is truncated to uint8 as in
the released code, so that views equal the authors' to the last grey level.
"""

from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from funmatch.core import geometry
from funmatch.core.geometry import View
from funmatch.core.images import Images

# Pixels of views that a CPU renders at a time, so that intermediate results fit its caches:
# measured 1.4 times as fast as whole batches at 224 px.
_CHUNK_PX = 2**16
# Source rows per row of a view, below which it is faster to interpolate each source row once.
_MAX_SOURCE_ROWS_PER_VIEW_ROW = 1.5


def render(image: Tensor, box: ArrayLike, size: int, *, flip: bool = False) -> Tensor:
    """One view of one image: crop, bilinear resize without antialiasing, mirror.

    Args:
        image: uint8 [C, H, W].
        box: (top, left, height, width) in source pixels. Integers cut the crop out before the
            resize; floats are a window on the image resized as a whole (see `geometry`).
        size: side of the view, pixels.
        flip: mirror the view left to right, after the crop.

    Returns:
        uint8 [C, size, size].

    Raises:
        ValueError: the box is empty or leaves the image.
    """
    return render_batch(torch.as_tensor(image)[None], np.asarray(box)[None], size, [flip])[0]


def render_batch(images: Images | Tensor, boxes: ArrayLike, size: int, flips: ArrayLike) -> Tensor:
    """Renders one view of each image of a batch, on the device of the images.

    Args:
        images: `Images` of any sizes, or uint8 [B, C, H, W].
        boxes: [B, 4], (top, left, height, width), integers or floats (see `geometry`).
        size: side of the views, pixels.
        flips: bool [B], True to mirror left to right.

    Returns:
        uint8 [B, C, size, size].

    Raises:
        ValueError: a box is empty or leaves its image.
    """
    if isinstance(images, Tensor):
        images = Images.of(images)
    boxes, flips = np.asarray(boxes), np.asarray(flips, dtype=bool)
    _check(boxes, images.heights, images.widths)
    count = max(1, _CHUNK_PX // size**2) if images.pixels.device.type == "cpu" else len(images)
    parts = (slice(first, first + count) for first in range(0, len(images), count))
    return torch.cat([_render(images.take(p), boxes[p], size, flips[p]) for p in parts])


def _render(images: Images, boxes: NDArray[Any], size: int, flips: NDArray[np.bool_]) -> Tensor:
    device = images.pixels.device

    def to_device(values: NDArray[Any]) -> Tensor:
        return torch.from_numpy(values).to(device, non_blocking=True)

    upper, lower, wy = _taps(boxes[:, 0], boxes[:, 2], images.heights, size, np.zeros_like(flips))
    columns = _taps(boxes[:, 1], boxes[:, 3], images.widths, size, flips)
    left, right, wx = (to_device(values) for values in columns)

    def interpolated(starts: NDArray[np.int64], image: Any) -> Tensor:
        """Source rows that begin at `starts`, interpolated horizontally: [..., size, C]."""
        begin = to_device(starts)[..., None]

        def gather(column: Tensor) -> Tensor:
            positions = begin + column[image]
            values = images.pixels.index_select(0, positions.view(-1))
            return values.view(*positions.shape, -1).float()

        near = gather(left)
        return gather(right).sub_(near).mul_(wx[image][..., None]).add_(near)

    first, count = upper[:, 0], lower[:, -1] - upper[:, 0] + 1
    # Rows of the view share source rows: interpolate each source row once.
    if count.sum() < _MAX_SOURCE_ROWS_PER_VIEW_ROW * upper.size:
        begin = np.cumsum(count) - count
        image = np.repeat(np.arange(len(images)), count)
        rows = np.arange(len(image)) + (first - begin)[image]
        lines = interpolated(images.starts[image] + rows * images.widths[image], to_device(image))
        taps = (to_device((row + (begin - first)[:, None]).reshape(-1)) for row in (upper, lower))
        above, below = (lines.index_select(0, tap).view(*upper.shape, size, -1) for tap in taps)
    else:
        starts = (images.starts[:, None] + row * images.widths[:, None] for row in (upper, lower))
        above, below = (interpolated(start, np.s_[:, None]) for start in starts)
    pixels = below.sub_(above).mul_(to_device(wy)[:, :, None, None]).add_(above).to(torch.uint8)
    return pixels.movedim(-1, 1).contiguous()


def _check(boxes: NDArray[Any], heights: NDArray[np.int64], widths: NDArray[np.int64]) -> None:
    top, left, rows, columns = np.asarray(boxes, dtype=np.float64).T
    # A fractional box may exceed the image by a rounding error.
    slack = 1e-6 * np.maximum(heights, widths)
    inside = (top >= 0) & (left >= 0) & (rows > 0) & (columns > 0)
    inside &= (top + rows <= heights + slack) & (left + columns <= widths + slack)
    if not inside.all():
        bad = int(np.argmin(inside))
        raise ValueError(
            f"box {boxes[bad].tolist()} (top, left, height, width) is not within "
            f"{heights[bad]}x{widths[bad]} px"
        )


def _taps(
    start: NDArray[Any],
    length: NDArray[Any],
    extents: NDArray[np.int64],
    size: int,
    mirrored: NDArray[np.bool_],
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.float32]]:
    """Interpolation taps along one axis: both source pixels of each view pixel, and a weight.

    Returns three arrays [B, size]: the near index, the far index and the weight of the far one.
    Half-pixel centres; indices beyond the border are clamped to it.
    """
    if np.issubdtype(start.dtype, np.integer):  # crop first: clamp to the border of the crop
        origin, shift = start, np.zeros_like(start)
        first, last = start, start + length - 1
    else:
        origin, shift = np.zeros_like(start), start
        first, last = np.zeros_like(start), extents - 1
    centres = np.arange(size, dtype=np.float32) + np.float32(0.5)
    scale = (length / size).astype(np.float32)[:, None]
    position = centres * scale - np.float32(0.5) + shift.astype(np.float32)[:, None]
    position = np.where(mirrored[:, None], position[:, ::-1], position)
    low = np.floor(position)
    near, far = (
        np.clip(low + step + origin[:, None], first[:, None], last[:, None]).astype(np.int64)
        for step in (0, 1)
    )
    return near, far, position - low


def evaluation_view(image: Tensor, *, resize: int, crop: int) -> Tensor:
    """Evaluation view: centre crop after an area resize of the shorter side.

    In an area resize each pixel is the mean of the source pixels that it covers.

    Args:
        image: uint8 [C, H, W].
        resize: shorter side of the resized image, pixels.
        crop: side of the view, pixels, at most resize.

    Returns:
        uint8 [C, crop, crop].

    Raises:
        ValueError: the crop does not fit.
    """
    if not 0 < crop <= resize:
        raise ValueError(f"crop must lie in (0, resize={resize}], got {crop}")
    image = torch.as_tensor(image)
    source = np.array(image.shape[-2:])
    target = geometry.shorter_side(source, resize)
    rows, columns = (
        _coverage(int(s), int(t), crop).to(image.device)
        for s, t in zip(source, target, strict=True)
    )
    # float64 and a small offset: the mean of equal grey levels must not be truncated to the one
    # below.
    means = rows @ image.double() @ columns.T
    return (means + 1e-6).to(torch.uint8)


def _coverage(source: int, target: int, crop: int) -> Tensor:
    """Weights [crop, source] of the source pixels in the centre crop of an area resize."""
    scale = source / target
    start = (torch.arange(crop, dtype=torch.float64) + (target - crop) // 2)[:, None] * scale
    pixel = torch.arange(source, dtype=torch.float64)
    overlap = torch.minimum(pixel + 1, start + scale) - torch.maximum(pixel, start)
    return overlap.clamp(min=0) / scale


def render_view(images: Images, view: View, side: int) -> Tensor:
    """Renders a batch of images with the boxes and flips of a `View`: uint8 [B, C, side, side]."""
    return render_batch(images, view.boxes, side, view.flips)
