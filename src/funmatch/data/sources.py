"""Image sources (protocol, in memory, concatenated) and the splits of a data set."""

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol, runtime_checkable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from funmatch.core.images import Images


class Source(Protocol):
    """A set of images with labels, read by index; the stream and the evaluation read from it.

    Attributes:
        classes: class names; empty without labels.
    """

    classes: tuple[str, ...]

    def __len__(self) -> int: ...

    def sizes(self, indices: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Heights and widths of images, int64 [B] each, in pixels."""
        ...

    def images(self, indices: NDArray[np.int64]) -> Images:
        """Decoded images, B of them."""
        ...

    def labels(self, indices: NDArray[np.int64]) -> Tensor | None:
        """Labels [B, ...] as the task defines them; None where there are none.

        For classes int64 [B], or bool [B, classes] where several are right.
        """
        ...

    def fingerprint(self) -> str:
        """Digest that changes when images or labels change."""
        ...


@runtime_checkable
class Encoded(Protocol):
    """A source that also returns encoded images, which are decoded on the device."""

    def encoded(self, indices: NDArray[np.int64]) -> list[Tensor]:
        """Contents of the image files, one tensor per image, as `image_files.on_device` expects."""
        ...


class ArraySource:
    """A source of images of one size in memory.

    Args:
        images: uint8 [N, C, H, W].
        labels: [N, ...] as the task defines them, or None where there are none.
        classes: their names; none for a task without classes.
    """

    def __init__(self, images: Tensor, labels: Tensor | None, classes: Sequence[str]) -> None:
        self._images, self._labels, self.classes = images, labels, tuple(classes)
        self._run = Images.of(images)

    @classmethod
    def of(cls, source: Source) -> "ArraySource":
        """Copies a source whose images are all of one size into memory."""
        rows = np.arange(len(source))
        return cls(torch.stack(list(source.images(rows))), source.labels(rows), source.classes)

    def __len__(self) -> int:
        return len(self._images)

    def sizes(self, indices: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        return self._run.heights[indices], self._run.widths[indices]

    def images(self, indices: NDArray[np.int64]) -> Images:
        return self._run.take(indices)

    def labels(self, indices: NDArray[np.int64]) -> Tensor | None:
        return None if self._labels is None else self._labels[torch.from_numpy(indices)]

    def fingerprint(self) -> str:
        digest = hashlib.sha256(str(tuple(self._images.shape)).encode())
        digest.update(self._images.numpy().tobytes())
        if self._labels is not None:
            digest.update(self._labels.numpy().tobytes())
        return digest.hexdigest()


class ConcatSource:
    """Concatenation of several sources, as a training set without labels.

    The labels are dropped, since those of different data sets mean different classes.

    Args:
        sources: sources whose images have the same number of channels.

    Raises:
        ValueError: the numbers of channels differ.
    """

    classes: tuple[str, ...] = ()

    def __init__(self, sources: Sequence[Source]) -> None:
        self._sources = [source for source in sources if len(source)]
        self._ends = np.cumsum([len(source) for source in self._sources], dtype=np.int64)
        first = np.zeros(1, dtype=np.int64)
        channels = [source.images(first).pixels.shape[1] for source in self._sources]
        if len(set(channels)) > 1:
            raise ValueError(f"data sets with {channels} channels cannot be concatenated")

    def __len__(self) -> int:
        return int(self._ends[-1]) if len(self._ends) else 0

    def sizes(self, indices: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        heights, widths = np.zeros_like(indices), np.zeros_like(indices)
        for source, rows, inside in self._parts(indices):
            heights[rows], widths[rows] = source.sizes(inside)
        return heights, widths

    def images(self, indices: NDArray[np.int64]) -> Images:
        decoded: dict[int, Tensor] = {}
        for source, rows, inside in self._parts(indices):
            decoded.update(zip(rows.tolist(), source.images(inside), strict=True))
        return Images.of(decoded[row] for row in range(len(indices)))

    def labels(self, indices: NDArray[np.int64]) -> None:
        return None

    def fingerprint(self) -> str:
        parts = "\n".join(source.fingerprint() for source in self._sources)
        return hashlib.sha256(parts.encode()).hexdigest()

    def _parts(
        self, indices: NDArray[np.int64]
    ) -> Iterator[tuple[Source, NDArray[np.int64], NDArray[np.int64]]]:
        """For each source that occurs: the source, its rows in the batch, and its own indices."""
        owners = np.searchsorted(self._ends, indices, side="right")
        for owner in np.unique(owners):
            source, rows = self._sources[owner], np.flatnonzero(owners == owner)
            yield source, rows, indices[rows] - (self._ends[owner] - len(source))


@dataclass(frozen=True)
class Splits:
    """Sources of the splits of a data set.

    Attributes:
        train: training images.
        val: validation images, for every choice such as the best checkpoint.
        test: test images, evaluated once at the end.
        others: further test sets, by name.
    """

    train: Source
    val: Source
    test: Source
    others: Mapping[str, Source] = field(default_factory=dict)

    def part(self, name: str) -> Source:
        """The split of a name: train, val, test, or one of the others.

        Raises:
            ValueError: no split has this name, or the split is empty.
        """
        parts = {"train": self.train, "val": self.val, "test": self.test, **self.others}
        if name not in parts:
            raise ValueError(f"split={name}: this data set has {', '.join(parts)}")
        if not len(parts[name]):
            raise ValueError(f"split={name}: contains no images; see data.split")
        return parts[name]
