"""Cache of decoded images in a memory-mapped file, shared by all processes.

A cache is a folder that is built under a temporary name and renamed when it is complete, so that a
process that is killed while building leaves no partial cache.
"""

import logging
import math
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

_FORMAT_VERSION = 1  # part of the name of a cache
_COMPARED_IMAGES = 16  # decoded again and compared when a cache is opened
_DECODE_CHUNK_IMAGES = 16  # decoded by one task of a thread
_SIZE_CHUNK_IMAGES = 1024  # whose sizes one task of a thread reads


class Cached:
    """A source that reads its images from a cache of decoded images.

    Each image is compared with its CRC-32 the first time that this process reads it.

    Args:
        source: the original source; it still provides labels, classes and the fingerprint.
        folder: folder of the cache, which must exist.

    Raises:
        ValueError: the file of pixels is truncated.
    """

    def __init__(self, source: Source, folder: Path) -> None:
        self.classes, self._source, self._folder = source.classes, source, folder
        self._open()

    def _open(self) -> None:
        with (self._folder / _INDEX).open("rb") as file, np.load(file) as index:
            self._sums, sizes, channels = index["sums"], index["sizes"], int(index["channels"])
        self._checked = np.zeros(len(self._sums), dtype=bool)
        # Read-only, not copy-on-write, which would count as memory of this process.
        run = np.memmap(self._folder / _PIXELS, dtype=np.uint8, mode="r")
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", ".*not writable.*", UserWarning)
            pixels = torch.from_numpy(run.reshape(-1, channels))
        self._images = Images.packed(pixels, sizes)
        if int(sizes.prod(axis=1).sum()) != len(pixels) or len(sizes) != len(self._sums):
            raise ValueError(f"cache: {self._folder} is truncated")

    def __getstate__(self) -> dict[str, Any]:
        """State without the pixels: the process that unpickles it maps the file again."""
        return {key: self.__dict__[key] for key in ("classes", "_source", "_folder")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._open()

    def __len__(self) -> int:
        return len(self._images)

    def sizes(self, indices: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        return self._images.heights[indices], self._images.widths[indices]

    def images(self, indices: NDArray[np.int64]) -> Images:
        """The decoded images, as a view of the memory-mapped file.

        Raises:
            DataNotFoundError: the checksum of an image is wrong.
        """
        for index in indices[~self._checked[indices]]:
            if _checksum(self._images.image(index)) != self._sums[index]:
                raise DataNotFoundError(
                    f"cache: {self._folder} is damaged; remove it, the next run rebuilds it"
                )
            self._checked[index] = True
        return self._images.take(indices)

    def labels(self, indices: NDArray[np.int64]) -> Tensor | None:
        return self._source.labels(indices)

    def fingerprint(self) -> str:
        return self._source.fingerprint()

    def fits(self) -> bool:
        """Returns True if a sample of images, spread over the cache, equals that of the source."""
        if len(self) != len(self._source):
            return False
        sample = np.unique(np.linspace(0, len(self) - 1, _COMPARED_IMAGES).astype(np.int64))
        pairs = zip(self._images.take(sample), self._source.images(sample), strict=True)
        return all(torch.equal(stored, original) for stored, original in pairs)


def is_cached(source: Source, store: Path) -> bool:
    """Returns True if a cache of the source exists in the folder `store`."""
    return _folder(source, store).is_dir()


def _folder(source: Source, store: Path) -> Path:
    return store / sha256(f"{_FORMAT_VERSION} {source.fingerprint()}".encode()).hexdigest()[:16]


def cached(source: Source, store: Path) -> Cached:
    """The source with its images in a cache, which the first of several processes builds.

    Args:
        source: source of the images.
        store: folder of all caches.

    Raises:
        OSError: the disk is full.
        DataNotFoundError: an image cannot be read.
    """
    folder = _folder(source, store)
    with atomic_files.lock(store / f"{folder.name}.lock", wait=True):
        if folder.is_dir():
            existing = _open_if_intact(source, folder)
            if existing is not None and existing.fits():
                return existing
            _log.warning("  cache: %s does not match its source; rebuilding it", folder)
            shutil.rmtree(folder)
        for partial_build in store.glob(f".{folder.name}.*.tmp"):  # of a process that was killed
            shutil.rmtree(partial_build)
        _build(source, folder)
    return Cached(source, folder)


def size(source: Source, sample: int | None = None) -> int:
    """Bytes of all images once decoded, from their headers.

    Args:
        source: source with at least one image.
        sample: estimate the size from so many images, spread over the source; None for all.
    """
    rows = np.arange(len(source))
    if sample is not None and sample < len(source):
        rows = np.linspace(0, len(source) - 1, sample).astype(np.int64)
    pieces = np.array_split(rows, math.ceil(len(rows) / _SIZE_CHUNK_IMAGES))
    with ThreadPoolExecutor(hardware.available_cores()) as pool:
        area = sum(int((h * w).sum()) for h, w in pool.map(source.sizes, pieces))
    channels = source.images(rows[:1]).pixels.shape[1]
    return round(area / len(rows) * len(source)) * channels


def _open_if_intact(source: Source, folder: Path) -> Cached | None:
    """Opens a cache; None if its files are missing or damaged."""
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
        with (temporary / _PIXELS).open("wb") as file, _progress_bar() as bar:
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
        checksums = np.array(sums, dtype=np.uint32)
        index = partial(np.savez, sizes=sizes, sums=checksums, channels=channels)
        atomic_files.write(temporary / _INDEX, index)
        temporary.rename(folder)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    _log.info("  cache: built in %.1f s", time.perf_counter() - start)


def _decoded(source: Source) -> Iterator[Images]:
    """All images in order, decoded by one thread per core."""
    threads, chunk = hardware.available_cores(), _DECODE_CHUNK_IMAGES
    rows = np.arange(len(source))
    with ThreadPoolExecutor(threads) as pool:
        for first in range(0, len(rows), 4 * threads * chunk):  # a block bounds the memory
            block = rows[first : first + 4 * threads * chunk]
            parts = [block[start : start + chunk] for start in range(0, len(block), chunk)]
            yield from pool.map(source.images, parts)


def _bytes(image: Tensor) -> bytes:
    return image.permute(1, 2, 0).numpy().tobytes()


def _checksum(image: Tensor) -> int:
    return zlib.crc32(_bytes(image))


def _progress_bar() -> Progress:
    columns = (TextColumn("{task.description}"), BarColumn(bar_width=None), TimeRemainingColumn())
    bar = Progress(*columns, expand=True, transient=True)
    bar.disable = not bar.console.is_terminal
    return bar
