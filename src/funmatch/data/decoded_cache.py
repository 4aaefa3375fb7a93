"""Decoded images in a file that is mapped into memory: decoded once, shared by all who read it.

A cache is a folder. It appears in one piece when it is whole, so whoever finds it may read it, and
a process that is killed while it builds leaves nothing that another would take for one.
"""

import logging
import os
import shutil
import time
import warnings
import zipfile
import zlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
from torch import Tensor

from funmatch.core.images import Images
from funmatch.data.file_list import DataNotFoundError
from funmatch.data.sources import Source
from funmatch.runtime import atomic_files, hardware

_log = logging.getLogger(__name__)

_FORM = 1  # of the files: another one is another cache
_COMPARED = 16  # images that are decoded again when a cache is opened
_AT_A_TIME = 16  # images that a thread decodes
_READ_AT_A_TIME = 1024  # images of which a thread reads the sizes


class Cached:
    """A source whose images are decoded already.

    Each image is checked against its checksum the first time that this process reads it.

    Args:
        source: that the images are from; labels and classes are still its own.
        folder: of the cache.
    """

    def __init__(self, source: Source, folder: Path) -> None:
        self.classes, self._source, self._folder = source.classes, source, folder
        self._open()

    def _open(self) -> None:
        with (self._folder / _INDEX).open("rb") as file, np.load(file) as index:
            self._sums, sizes, channels = index["sums"], index["sizes"], int(index["channels"])
        self._checked = np.zeros(len(self._sums), dtype=bool)
        # Read-only, not copy-on-write: that would be counted as memory of this process.
        run = np.memmap(self._folder / _PIXELS, dtype=np.uint8, mode="r")
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", ".*not writable.*", UserWarning)
            pixels = torch.from_numpy(run.reshape(-1, channels))
        self._images = Images.packed(pixels, sizes)
        if int(sizes.prod(axis=1).sum()) != len(pixels) or len(sizes) != len(self._sums):
            raise ValueError(f"cache: {self._folder} is cut off")

    def __getstate__(self) -> dict[str, Any]:
        """Without the pixels: another process maps the file itself."""
        return {key: self.__dict__[key] for key in ("classes", "_source", "_folder")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._open()

    def __len__(self) -> int:
        return len(self._images)

    def sizes(self, indices: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        return self._images.heights[indices], self._images.widths[indices]

    def images(self, indices: NDArray[np.int64]) -> Images:
        """A view of the file.

        Raises:
            MissingData: an image is not as it was written.
        """
        for index in indices[~self._checked[indices]]:
            if _checksum(self._images.image(index)) != self._sums[index]:
                raise DataNotFoundError(
                    f"cache: {self._folder} is damaged; remove it, it is made again"
                )
            self._checked[index] = True
        return self._images.take(indices)

    def labels(self, indices: NDArray[np.int64]) -> Tensor | None:
        return self._source.labels(indices)

    def fingerprint(self) -> str:
        return self._source.fingerprint()

    def fits(self) -> bool:
        """Whether images taken all over the cache are those of the source."""
        if len(self) != len(self._source):
            return False
        some = np.unique(np.linspace(0, len(self) - 1, _COMPARED).astype(np.int64))
        pairs = zip(self._images.take(some), self._source.images(some), strict=True)
        return all(torch.equal(here, there) for here, there in pairs)


def is_cached(source: Source, store: Path) -> bool:
    """Whether the source has a cache already."""
    return _folder(source, store).is_dir()


def _folder(source: Source, store: Path) -> Path:
    return store / sha256(f"{_FORM} {source.fingerprint()}".encode()).hexdigest()[:16]


def cached(source: Source, store: Path) -> Cached:
    """The source with its images decoded once, by the first of all processes that ask for it.

    Args:
        source: the images.
        store: where caches lie.

    Raises:
        OSError: the disk is full.
    """
    folder = _folder(source, store)
    with atomic_files.lock(store / f"{folder.name}.lock", wait=True):
        if folder.is_dir():
            there = _opened(source, folder)
            if there is not None and there.fits():
                return there
            _log.warning("  cache: %s is not what its source holds; made again", folder)
            shutil.rmtree(folder)
        for rest in store.glob(f".{folder.name}.*.tmp"):  # of a process that was killed
            shutil.rmtree(rest)
        _build(source, folder)
    return Cached(source, folder)


def size(source: Source, sample: int | None = None) -> int:
    """Bytes of all images decoded, from their sizes, or from those of a sample."""
    rows = np.arange(len(source))
    if sample is not None and sample < len(source):
        rows = np.linspace(0, len(source) - 1, sample).astype(np.int64)
    pieces = np.array_split(rows, -(-len(rows) // _READ_AT_A_TIME))
    with ThreadPoolExecutor(hardware.available_cores()) as pool:
        area = sum(int((h * w).sum()) for h, w in pool.map(source.sizes, pieces))
    channels = source.images(rows[:1]).pixels.shape[1]
    return round(area / len(rows) * len(source)) * channels


def _opened(source: Source, folder: Path) -> Cached | None:
    """A cache, if it is whole."""
    try:
        return Cached(source, folder)
    except (FileNotFoundError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
        return None


_PIXELS, _INDEX = "pixels.bin", "index.npz"


def _build(source: Source, folder: Path) -> None:
    temporary = folder.with_name(f".{folder.name}.{os.getpid()}.tmp")
    total, start = size(source), time.perf_counter()
    _log.info(f"  cache: {len(source):,} images, {total / 1e9:.3g} GB decoded, in {folder}")
    temporary.mkdir(parents=True)
    try:
        sizes, sums, channels = [], [], 0
        with (temporary / _PIXELS).open("wb") as file, _bar() as bar:
            task = bar.add_task("  cache", total=len(source))
            for images in _decoded(source):
                for image in images:
                    channels = len(image)
                    sizes.append(image.shape[1:])
                    sums.append(_checksum(image))
                    file.write(_bytes(image))
                bar.update(task, advance=len(images))
            file.flush()
            os.fsync(file.fileno())
        found = np.array(sums, dtype=np.uint32)
        index = partial(np.savez, sizes=sizes, sums=found, channels=channels)
        atomic_files.write(temporary / _INDEX, index)
        temporary.rename(folder)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    _log.info("  cache: made in %.1f s", time.perf_counter() - start)


def _decoded(source: Source) -> Iterator[Images]:
    """All images in order, decoded by as many threads as there are cores."""
    threads = hardware.available_cores()
    rows = np.arange(len(source))
    with ThreadPoolExecutor(threads) as pool:
        for first in range(0, len(rows), 4 * threads * _AT_A_TIME):  # what is in memory at a time
            block = rows[first : first + 4 * threads * _AT_A_TIME]
            parts = [block[at : at + _AT_A_TIME] for at in range(0, len(block), _AT_A_TIME)]
            yield from pool.map(source.images, parts)


def _bytes(image: Tensor) -> bytes:
    return image.permute(1, 2, 0).numpy().tobytes()


def _checksum(image: Tensor) -> int:
    return zlib.crc32(_bytes(image))


def _bar() -> Progress:
    columns = (TextColumn("{task.description}"), BarColumn(bar_width=None), TimeRemainingColumn())
    bar = Progress(*columns, expand=True, transient=True)
    bar.disable = not bar.console.is_terminal
    return bar
