"""Decoded images of different sizes in one tensor of pixels, in memory, in a file or on a GPU."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor


@dataclass(frozen=True)
class Images:
    """B images of different sizes in a shared tensor of pixels.

    The tensor may contain further images. It may be in memory, a memory-mapped file or on a GPU;
    `take` copies no pixels.

    Attributes:
        pixels: uint8 [P, channels], image after image, each row by row.
        starts: int64 [B], index in `pixels` of the first pixel of each image.
        heights: int64 [B], pixels.
        widths: int64 [B], pixels.
    """

    pixels: Tensor
    starts: NDArray[np.int64]
    heights: NDArray[np.int64]
    widths: NDArray[np.int64]

    @classmethod
    def of(cls, images: Iterable[Tensor]) -> "Images":
        """Copies at least one image, uint8 [channels, H, W], of any sizes."""
        rows = list(images)
        sizes = np.array([image.shape[1:] for image in rows], dtype=np.int64)
        pixels = [image.permute(1, 2, 0).reshape(-1, len(image)) for image in rows]
        return cls.packed(torch.cat(pixels), sizes)

    @classmethod
    def packed(cls, pixels: Tensor, sizes: NDArray[np.int64]) -> "Images":
        """Images that are stored one after the other without gaps; copies no pixels.

        Args:
            pixels: uint8 [P, channels].
            sizes: int64 [B, 2], heights and widths, pixels.
        """
        heights, widths = np.ascontiguousarray(sizes.astype(np.int64).T)
        area = heights * widths
        return cls(pixels, np.cumsum(area) - area, heights, widths)

    def __len__(self) -> int:
        return len(self.starts)

    def __iter__(self) -> Iterator[Tensor]:
        return (self.image(number) for number in range(len(self)))

    def image(self, number: int) -> Tensor:
        """One image, a view of the pixels: uint8 [channels, H, W]."""
        height, width = int(self.heights[number]), int(self.widths[number])
        start = int(self.starts[number])
        pixels = self.pixels[start : start + height * width]
        return pixels.view(height, width, -1).permute(2, 0, 1)

    def take(self, rows: NDArray[np.int64] | slice) -> "Images":
        """A selection of the images, by row numbers [B'] or a slice."""
        return Images(self.pixels, self.starts[rows], self.heights[rows], self.widths[rows])

    def to(self, device: torch.device | str) -> "Images":
        """The images on another device; copies all of `pixels`."""
        return replace(self, pixels=self.pixels.to(device))
