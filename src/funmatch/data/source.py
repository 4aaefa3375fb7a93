"""Sources: where image i and label i come from."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from funmatch.stream import Source


class ArraySource:
    """Images of one size, held in memory.

    Args:
        images: uint8 [N, C, H, W].
        labels: int64 [N], or None where there are none.
        classes: their names.
    """

    def __init__(self, images: Tensor, labels: Tensor | None, classes: Sequence[str]) -> None:
        self._images, self._labels, self.classes = images, labels, tuple(classes)

    def __len__(self) -> int:
        return len(self._images)

    def sizes(self, indices: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        height, width = self._images.shape[-2:]
        return np.full(len(indices), height), np.full(len(indices), width)

    def images(self, indices: NDArray[np.int64]) -> Tensor:
        return self._images[torch.from_numpy(indices)]

    def labels(self, indices: NDArray[np.int64]) -> Tensor | None:
        return None if self._labels is None else self._labels[torch.from_numpy(indices)]

    def fingerprint(self) -> str:
        digest = hashlib.sha256(str(tuple(self._images.shape)).encode())
        digest.update(self._images.numpy().tobytes())
        if self._labels is not None:
            digest.update(self._labels.numpy().tobytes())
        return digest.hexdigest()


@dataclass(frozen=True)
class Splits:
    """The three parts of a data set.

    Attributes:
        train: what is taught on.
        val: what every choice is made on.
        test: what is looked at once, at the end.
    """

    train: Source
    val: Source
    test: Source
