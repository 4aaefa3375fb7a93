"""Images that cannot be read, and what a run does without them."""

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


def without_corrupt_images(splits: Splits, store: Path, say: Callable[[str], object]) -> Splits:
    """The splits without their broken images.

    In what is taught on, the next image takes the place of a broken one, so the numbers of images
    and steps stay as they are; what is measured on becomes smaller. All images are opened once,
    and what was found is kept.

    Args:
        splits: sources of other kinds than photographs are left as they are.
        store: where it is kept which images are broken.
        say: is told what was found.

    Raises:
        MissingData: no image is left.
    """
    return replace(
        splits,
        train=_sound(splits.train, store, say, fill=True),
        val=_sound(splits.val, store, say, fill=False),
        test=_sound(splits.test, store, say, fill=False),
        others={name: _sound(part, store, say, fill=False) for name, part in splits.others.items()},
    )


def _sound(source: Source, store: Path, say: Callable[[str], object], *, fill: bool) -> Source:
    if not isinstance(source, ImageFiles) or not len(source):
        return source
    found = _broken(source, store, say)
    if not len(found):
        return source
    first = source.path(int(found[0]))
    if len(found) == len(source):
        raise DataNotFoundError(f"root: none of {len(source)} images can be read, first {first}")
    told = "replaced by their neighbours" if fill else "not measured on"
    say(f"broken: {len(found)} of {len(source)} images, {told}; first {first}")
    sound = np.setdiff1d(np.arange(len(source)), found)
    if not fill:
        return source.take(sound)
    next_one = np.searchsorted(sound, np.arange(len(source))) % len(sound)
    return source.take(sound[next_one])


def _broken(source: ImageFiles, store: Path, say: Callable[[str], object]) -> NDArray[np.int64]:
    """The places of images that cannot be read, looked for once."""
    path = store / f"{sha256(source.fingerprint().encode()).hexdigest()[:16]}.broken.json"

    def look() -> bytes:
        say(f"broken: looking through {len(source):,} images once")
        with ThreadPoolExecutor(hardware.available_cores()) as pool:
            found = pool.map(lambda index: _reads(source, index), range(len(source)))
            rows = [index for index, reads in enumerate(found) if not reads]
        return json.dumps({source.name(index): index for index in rows}, indent=1).encode()

    return np.array(
        sorted(json.loads(atomic_files.write_once(path, look)).values()), dtype=np.int64
    )


def _reads(source: ImageFiles, index: int) -> bool:
    try:
        source.images(np.array([index]))
    except DataNotFoundError:
        return False
    return True
