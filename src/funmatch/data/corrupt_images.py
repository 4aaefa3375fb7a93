"""Corrupt images: finds image files that cannot be read and removes them from the splits."""

import json
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from hashlib import sha256
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from funmatch.data.file_list import DataNotFoundError
from funmatch.data.image_files import ImageFiles
from funmatch.data.sources import Source, Splits
from funmatch.runtime import atomic_files, hardware


def without_corrupt_images(splits: Splits, store: Path, log: Callable[[str], object]) -> Splits:
    """The splits without their corrupt images.

    In the training split the next readable image replaces a corrupt one, so that the numbers of
    images and steps do not change; from the other splits corrupt images are removed. All images
    are opened once, and the result is stored.

    Args:
        splits: sources that are not `ImageFiles` are returned unchanged.
        store: folder in which the list of corrupt images is stored.
        log: called with each message for the user.

    Raises:
        DataNotFoundError: no image of a split can be read.
    """
    return replace(
        splits,
        train=_readable(splits.train, store, log, fill=True),
        val=_readable(splits.val, store, log, fill=False),
        test=_readable(splits.test, store, log, fill=False),
        others={n: _readable(part, store, log, fill=False) for n, part in splits.others.items()},
    )


def _readable(source: Source, store: Path, log: Callable[[str], object], *, fill: bool) -> Source:
    if not isinstance(source, ImageFiles) or not len(source):
        return source
    corrupt = _find_corrupt(source, store, log)
    if not len(corrupt):
        return source
    first = source.path(int(corrupt[0]))
    if len(corrupt) == len(source):
        raise DataNotFoundError(f"root: none of {len(source)} images can be read, first {first}")
    action = "replaced by the next images" if fill else "left out of the evaluation"
    log(f"broken: {len(corrupt)} of {len(source)} images, {action}; first {first}")
    intact = np.setdiff1d(np.arange(len(source)), corrupt)
    if not fill:
        return source.take(intact)
    next_intact = np.searchsorted(intact, np.arange(len(source))) % len(intact)
    return source.take(intact[next_intact])


def _find_corrupt(
    source: ImageFiles, store: Path, log: Callable[[str], object]
) -> NDArray[np.int64]:
    """Increasing indices of the images that cannot be read, from the stored list if it exists."""
    path = store / f"{sha256(source.fingerprint().encode()).hexdigest()[:16]}.broken.json"

    def check_all() -> bytes:
        log(f"broken: checking {len(source):,} images once")
        with ThreadPoolExecutor(hardware.available_cores()) as pool:
            results = pool.map(lambda index: _is_readable(source, index), range(len(source)))
            rows = [index for index, readable in enumerate(results) if not readable]
        return json.dumps({source.name(index): index for index in rows}, indent=1).encode()

    return np.array(
        sorted(json.loads(atomic_files.write_once(path, check_all)).values()), dtype=np.int64
    )


def _is_readable(source: ImageFiles, index: int) -> bool:
    try:
        source.images(np.array([index]))
    except DataNotFoundError:
        return False
    return True
