"""Crop geometry: crop boxes and flips of a batch of views, and the random generators behind them.

A box is (top, left, height, width) in pixels of the source image. Its dtype selects the order of
crop and resize:

- **integers**: crop, then resize; the interpolation does not read pixels outside the box;
- **floats**: resize the whole image, then crop; at the border of the box the interpolation reads
  the neighbouring pixels outside it.
"""

from dataclasses import dataclass
from enum import IntEnum
from hashlib import blake2b

import numpy as np
from numpy.typing import ArrayLike, NDArray

Boxes = NDArray[np.generic]

_MAX_ATTEMPTS = 100  # as in TensorFlow; after that the whole image is taken


class Purpose(IntEnum):
    """Purpose of a random generator.

    Each purpose has an independent stream of draws, so that two recipes with one seed stay paired:
    what one of them draws in addition does not shift the other draws.
    """

    ORDER = 1
    MIXING = 2
    STUDENT_FLIPS = 3
    STUDENT_BOXES = 4
    TEACHER_BOXES = 5
    TEACHER_FLIPS = 6


def generator(seed: int, step: int, purpose: int = 0) -> np.random.Generator:
    """Random generator of one step: counter-based, so that any step is reached in O(1).

    Args:
        seed: seed of the run, from 0.
        step: optimiser step, from 0.
        purpose: a `Purpose`; each gives an independent stream within the step.

    Raises:
        ValueError: the seed or the step is negative or has more than 64 bits.
    """
    if not (0 <= seed < 2**64 and 0 <= step < 2**64):
        raise ValueError(f"seed and step must lie in [0, 2^64), got {seed} and {step}")
    # The step fills the upper half of the counter: 2^128 numbers before the next step begins.
    return np.random.Generator(np.random.Philox(key=[seed, purpose], counter=[0, 0, step, 0]))


def noise_seed(seed: int, step: int, rank: int) -> int:
    """32-bit seed of the noise that networks draw in one step, such as dropout.

    Args:
        seed: seed of the run, from 0.
        step: optimiser step, from 0.
        rank: rank of the process; each rank draws different noise.
    """
    return int.from_bytes(blake2b(f"{seed} {step} {rank}".encode(), digest_size=4).digest())


def inception(
    heights: ArrayLike,
    widths: ArrayLike,
    *,
    rng: np.random.Generator,
    area: tuple[float, float] = (0.05, 1.0),
    aspect: tuple[float, float] = (0.75, 1.33),
) -> NDArray[np.int64]:
    """Inception crops with the distribution of TensorFlow's `sample_distorted_bounding_box`.

    The aspect ratio (w/h) is uniform, then the height is uniform between those of the smallest and
    the largest area, so that small crops are likelier than with torchvision's `RandomResizedCrop`.
    Box i depends on the size of image i alone, not on the other images of the batch.

    Args:
        heights: [B], heights of the images, pixels.
        widths: [B], widths of the images, pixels.
        rng: source of the draws.
        area: smallest and largest fraction of the image area, 0 < smallest <= largest <= 1.
        aspect: smallest and largest aspect ratio w/h.

    Returns:
        int64 [B, 4], boxes (top, left, height, width).

    Raises:
        ValueError: a range is empty or out of bounds.

    Source: TensorFlow, `sample_distorted_bounding_box_op.cc`; Szegedy et al. 2015.
    """
    if not 0 < area[0] <= area[1] <= 1:
        raise ValueError(f"area must be a range within (0, 1], got {tuple(area)}")
    if not 0 < aspect[0] <= aspect[1]:
        raise ValueError(f"aspect must be a range of positive numbers, got {tuple(aspect)}")
    h, w = np.asarray(heights, dtype=np.int64), np.asarray(widths, dtype=np.int64)
    boxes = np.stack([np.zeros_like(h), np.zeros_like(w), h, w], axis=1)
    pending = np.ones(len(h), dtype=bool)
    for _ in range(_MAX_ATTEMPTS):
        draws = rng.random((4, len(h)))  # for every image, including those that have a box already
        candidates, valid = _propose(h, w, draws, area, aspect)
        accepted = pending & valid
        boxes[accepted] = candidates[accepted]
        pending &= ~valid
        if not pending.any():
            break
    return boxes


def _propose(
    h: NDArray[np.int64],
    w: NDArray[np.int64],
    draws: NDArray[np.float64],
    area: tuple[float, float],
    aspect: tuple[float, float],
) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
    """One attempt for every image: boxes [B, 4], and bool [B], True for valid boxes."""
    ratio = aspect[0] + draws[0] * (aspect[1] - aspect[0])
    smallest, largest = area[0] * h * w, area[1] * h * w

    low, high = _round(np.sqrt(smallest / ratio)), _round(np.sqrt(largest / ratio))
    cut = ((w + 0.5 - 1e-7) / ratio).astype(np.int64)
    cut -= _round(cut * ratio) > w
    high = np.where(_round(high * ratio) > w, cut, high)
    high = np.minimum(high, h)
    low = np.minimum(low, high)
    height = low + _index(draws[1], high - low + 1)

    # Rounding may leave the area just outside its range: one pixel more, then one less.
    height += height * _round(height * ratio) < smallest
    height -= height * _round(height * ratio) > largest
    width = _round(height * ratio)
    size = height * width
    valid = (smallest <= size) & (size <= largest) & (height <= h) & (width <= w) & (size > 0)
    # TensorFlow draws the offset below h - height, exclusive: a crop never touches the far border.
    top, left = _index(draws[2], h - height), _index(draws[3], w - width)
    return np.stack([top, left, height, width], axis=1), valid


def _round(x: NDArray[np.float64]) -> NDArray[np.int64]:
    return np.rint(x).astype(np.int64)


def _index(draw: NDArray[np.float64], count: NDArray[np.int64]) -> NDArray[np.int64]:
    """Maps uniform draws in [0, 1) to integers in [0, count), or to 0 if count is not positive."""
    return (draw * np.maximum(count, 1)).astype(np.int64)


def mild(
    heights: ArrayLike,
    widths: ArrayLike,
    *,
    rng: np.random.Generator,
    resize: int = 160,
    crop: int = 128,
) -> NDArray[np.float64]:
    """Random crops of crop x crop pixels after a resize to resize x resize (aspect not kept).

    Args:
        heights: [B], heights of the images, pixels.
        widths: [B], widths of the images, pixels.
        rng: source of the draws.
        resize: side of the resized image, pixels.
        crop: side of the crop, pixels, at most resize.

    Returns:
        float64 [B, 4], boxes in fractional coordinates of the source images.

    Raises:
        ValueError: the crop does not fit.
    """
    _fits(resize, crop)
    size = np.stack([np.asarray(heights), np.asarray(widths)], axis=1) / resize
    corner = rng.integers(0, resize - crop + 1, size=size.shape)
    return np.concatenate([corner * size, crop * size], axis=1)


def centre(heights: ArrayLike, widths: ArrayLike, *, resize: int, crop: int) -> NDArray[np.float64]:
    """Centre crops of crop x crop pixels after a resize of the shorter side to `resize`.

    Args:
        heights: [B], heights of the images, pixels.
        widths: [B], widths of the images, pixels.
        resize: shorter side of the resized image, pixels.
        crop: side of the crop, pixels, at most resize.

    Returns:
        float64 [B, 4], boxes in fractional coordinates of the source images.

    Raises:
        ValueError: the crop does not fit.
    """
    _fits(resize, crop)
    size = np.stack([np.asarray(heights), np.asarray(widths)], axis=1)
    resized = shorter_side(size, resize)
    corner = (resized - crop) // 2
    return np.concatenate([corner, np.full_like(corner, crop)], axis=1) * np.tile(size / resized, 2)


def shorter_side(size: NDArray[np.int64], resize: int) -> NDArray[np.int64]:
    """Heights and widths [..., 2] after a resize of the shorter of the two to `resize`."""
    # In float32, as in the reference code: the precision decides how a half is rounded.
    ratio = np.float32(resize) / size.min(axis=-1, keepdims=True).astype(np.float32)
    return np.rint(size.astype(np.float32) * ratio).astype(np.int64)


def whole(heights: ArrayLike, widths: ArrayLike) -> NDArray[np.float64]:
    """Boxes of whole images: float64 [B, 4]."""
    size = np.stack([np.asarray(heights), np.asarray(widths)], axis=1).astype(np.float64)
    return np.concatenate([np.zeros_like(size), size], axis=1)


def flips(n: int, *, rng: np.random.Generator) -> NDArray[np.bool_]:
    """Random horizontal flips of n views with probability 1/2: bool [n], True for mirrored."""
    return rng.random(n) < 0.5


def _fits(resize: int, crop: int) -> None:
    if not 0 < crop <= resize:
        raise ValueError(f"crop must lie in (0, resize={resize}], got {crop}")


@dataclass(frozen=True)
class View:
    """Crop boxes and flips of a batch of views.

    Attributes:
        boxes: [B, 4], (top, left, height, width); the dtype matters, see the module.
        flips: bool [B], True for views mirrored left to right.
    """

    boxes: Boxes
    flips: NDArray[np.bool_]

    def __getitem__(self, rows: NDArray[np.int64]) -> "View":
        return View(self.boxes[rows], self.flips[rows])
