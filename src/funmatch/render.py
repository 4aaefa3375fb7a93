"""From a uint8 image and a box to the uint8 pixels of a view.

The arithmetic follows TensorFlow's kernels in float32, and the result is truncated to uint8 as the
released code does, so that views equal the authors' to the last grey level.
"""

from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from funmatch import geometry


def render(image: Tensor, box: ArrayLike, size: int, *, flip: bool = False) -> Tensor:
    """One view of one image: crop, bilinear resize without antialiasing, mirror.

    Args:
        image: uint8 [C, H, W].
        box: (top, left, height, width) in source pixels. Integers cut the crop out before the
            resize; floats are a window on the image resized as a whole (see `geometry`).
        size: side of the view, pixels.
        flip: mirror the view left to right.

    Returns:
        uint8 [C, size, size].

    Raises:
        ValueError: the box is empty or leaves the image.
    """
    return render_batch(torch.as_tensor(image)[None], np.asarray(box)[None], size, [flip])[0]


def render_batch(images: Tensor, boxes: ArrayLike, size: int, flips: ArrayLike) -> Tensor:
    """Views of images of one size; every pixel equals that of `render`.

    Args:
        images: uint8 [B, C, H, W].
        boxes: [B, 4], integers or floats.
        size: side of the views, pixels.
        flips: bool [B].

    Returns:
        uint8 [B, C, size, size].

    Raises:
        ValueError: a box is empty or leaves its image.
    """
    boxes, flips = np.asarray(boxes), np.asarray(flips, dtype=bool)
    height, width = images.shape[-2:]
    _check(boxes, height, width)
    top, bottom, dy = _taps(boxes[:, 0], boxes[:, 2], height, size, np.zeros_like(flips))
    left, right, dx = _taps(boxes[:, 1], boxes[:, 3], width, size, flips)

    batch = torch.arange(len(images), device=images.device)[:, None, None]
    rows = [torch.as_tensor(r, device=images.device)[:, :, None] for r in (top, bottom)]
    columns = [torch.as_tensor(c, device=images.device)[:, None, :] for c in (left, right)]
    wy = torch.as_tensor(dy, device=images.device)[:, :, None, None]
    wx = torch.as_tensor(dx, device=images.device)[:, None, :, None]

    def between(row: Tensor) -> Tensor:  # [B, size, size, C]
        near, far = (images[batch, :, row, column].float() for column in columns)
        return near + (far - near) * wx

    upper, lower = (between(row) for row in rows)
    return (upper + (lower - upper) * wy).to(torch.uint8).movedim(-1, 1).contiguous()


def _check(boxes: NDArray[Any], height: int, width: int) -> None:
    top, left, rows, columns = np.asarray(boxes, dtype=np.float64).T
    slack = 1e-6 * max(height, width)  # a fractional box may end a rounding error beyond the image
    inside = (top >= 0) & (left >= 0) & (rows > 0) & (columns > 0)
    inside &= (top + rows <= height + slack) & (left + columns <= width + slack)
    if not inside.all():
        bad = boxes[~inside][0].tolist()
        raise ValueError(f"box {bad} (top, left, height, width) is not within {height}x{width} px")


def _taps(
    start: NDArray[Any],
    length: NDArray[Any],
    extent: int,
    size: int,
    mirrored: NDArray[np.bool_],
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.float32]]:
    """The two source pixels behind each view pixel on one axis, and the weight of the second.

    Returns three arrays [B, size]. Half-pixel centres; beyond the border its pixel is repeated.
    """
    if np.issubdtype(start.dtype, np.integer):  # the crop is an image of its own
        origin, shift = start, np.zeros_like(start)
        first, last = start, start + length - 1
    else:
        origin, shift = np.zeros_like(start), start
        first, last = np.zeros_like(start), np.full_like(start, extent - 1)
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
    """The central crop after a resize of the shorter side, each pixel the mean of what it covers.

    Args:
        image: uint8 [C, H, W].
        resize: shorter side of the resized image, pixels.
        crop: side of the view, at most resize.

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
    # float64, and a nudge: the mean of equal grey levels must not be truncated to the one below.
    means = rows @ image.double() @ columns.T
    return (means + 1e-6).to(torch.uint8)


def _coverage(source: int, target: int, crop: int) -> Tensor:
    """[crop, source]: the share of each source pixel in the central pixels of an area resize."""
    scale = source / target
    start = (torch.arange(crop, dtype=torch.float64) + (target - crop) // 2)[:, None] * scale
    pixel = torch.arange(source, dtype=torch.float64)
    overlap = torch.minimum(pixel + 1, start + scale) - torch.maximum(pixel, start)
    return overlap.clamp(min=0) / scale
