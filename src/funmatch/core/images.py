"""Decoded images of any size as one run of pixels: cut from in place, wherever the run lies."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor


@dataclass(frozen=True)
class Images:
    """B images within a run of pixels that may hold others too.

    The run may be memory, a file mapped into memory, or a tensor on a GPU; to take some images from
    it copies nothing.

    Attributes:
        pixels: uint8 [P, channels], of image after image, each row by row.
        starts: int64 [B], where in the run each image begins.
        heights: int64 [B], pixels.
        widths: int64 [B], pixels.
    """

    pixels: Tensor
    starts: NDArray[np.int64]
    heights: NDArray[np.int64]
    widths: NDArray[np.int64]

    @classmethod
    def of(cls, images: Iterable[Tensor]) -> "Images":
        """A copy of images [channels, H, W] of any sizes; at least one."""
        rows = list(images)
        sizes = np.array([image.shape[1:] for image in rows], dtype=np.int64)
        pixels = [image.permute(1, 2, 0).reshape(-1, len(image)) for image in rows]
        return cls.packed(torch.cat(pixels), sizes)

    @classmethod
    def packed(cls, pixels: Tensor, sizes: NDArray[np.int64]) -> "Images":
        """The images of a run that lie in it without gaps.

        Args:
            pixels: uint8 [P, channels].
            sizes: heights and widths [B, 2].
        """
        heights, widths = np.ascontiguousarray(sizes.astype(np.int64).T)
        area = heights * widths
        return cls(pixels, np.cumsum(area) - area, heights, widths)

    def __len__(self) -> int:
        return len(self.starts)

    def __iter__(self) -> Iterator[Tensor]:
        return (self.image(number) for number in range(len(self)))

    def image(self, number: int) -> Tensor:
        """One of them, a view: uint8 [channels, H, W]."""
        height, width = int(self.heights[number]), int(self.widths[number])
        start = int(self.starts[number])
        pixels = self.pixels[start : start + height * width]
        return pixels.view(height, width, -1).permute(2, 0, 1)

    def take(self, rows: NDArray[np.int64] | slice) -> "Images":
        """Some of them, [B']."""
        return Images(self.pixels, self.starts[rows], self.heights[rows], self.widths[rows])

    def to(self, device: torch.device | str) -> "Images":
        """The same with the whole run on another device."""
        return replace(self, pixels=self.pixels.to(device))
