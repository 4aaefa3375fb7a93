"""Reproducible splits: stratified splits that depend on file names alone, and stored splits."""

import gzip
import hashlib
import math
from collections.abc import Mapping, Sequence
from functools import cache
from importlib import resources
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from funmatch.data.file_list import FileList

# Seed of the split, not of a run: every run uses the same images.
SEED = 0


def split(images: FileList, *shares: float, least: int = 0) -> list[FileList]:
    """Splits a file list into training images and held-out parts, with the seeded stratified split.

    The sizes of the held-out parts are rounded down and training gets the rest: so 98 % of
    ImageNet are 1,255,544 images, and 70/10/20 % of SUN397 are the paper's sizes.

    Args:
        images: the file list, with labels or without.
        shares: fractions of the held-out parts.
        least: minimum number of images in a part whose share is not 0.

    Returns:
        The training images, then one file list per share.
    """
    # The small offset corrects rounding: 0.29 * 100 is 28.999...
    sizes = [math.floor(share * len(images) + 1e-6) for share in shares]
    sizes = [max(size, least) if share else 0 for size, share in zip(sizes, shares, strict=True)]
    labels = images.labels
    assert labels is None or labels.ndim == 1
    parts = stratified(images.names, None if labels is None else labels.astype(np.int64), sizes)
    return [images.take(part) for part in parts]


def stratified(
    names: Sequence[str],
    labels: NDArray[np.int64] | None,
    sizes: Sequence[int],
    *,
    seed: int = SEED,
) -> list[NDArray[np.int64]]:
    """Stratified split by class, a function of the seed and the names alone.

    In each class the images are taken in the order of the SHA-256 of "seed/name", so that the
    order of the names, the operating system and the version of numpy have no effect.

    Args:
        names: [N], distinct.
        labels: [N], or None for one class.
        sizes: exact sizes of all parts but the first, which gets the rest.
        seed: seed of the split.

    Returns:
        Increasing indices of each part, the first part first. Every class has about the same
        share in every part, and keeps an image in the first part if that is possible.

    Raises:
        ValueError: the sizes add up to more than N, or one is negative.
    """
    total = len(names)
    if sum(sizes) > total or min(sizes, default=0) < 0:
        raise ValueError(f"parts of {list(sizes)} images do not fit into {total} images")
    labels = np.zeros(total, dtype=np.int64) if labels is None else labels
    classes, members = np.unique(labels, return_inverse=True)
    left = np.bincount(members, minlength=len(classes))
    keep = np.minimum(left, sum(sizes) <= total - len(classes))
    keys = np.array([_key(f"{seed}/{name}") for name in names], dtype=np.uint64)
    queue = np.lexsort((keys, members))  # class by class, in each by key
    owner = members[queue]
    rank = np.arange(total) - (np.cumsum(left) - left)[owner]  # within its class
    part = np.zeros(total, dtype=np.int64)
    done = np.zeros_like(left)
    for number, size in enumerate(sizes, start=1):
        taken = _allocation(size, left, left - keep)
        part[queue[(rank >= done[owner]) & (rank < (done + taken)[owner])]] = number
        done, left = done + taken, left - taken
    return [np.flatnonzero(part == number) for number in range(len(sizes) + 1)]


def _key(text: str) -> int:
    return int.from_bytes(hashlib.sha256(text.encode(errors="surrogateescape")).digest()[:8], "big")


def _allocation(size: int, counts: NDArray[np.int64], most: NDArray[np.int64]) -> NDArray[np.int64]:
    """Distributes a size over classes by largest remainders, at most `most` to each."""
    if not size:
        return np.zeros_like(counts)
    quotas = size * counts  # in units of 1 / counts.sum(): integers are exact on every system
    given = np.minimum(quotas // counts.sum(), most)
    order = np.argsort(-(quotas - given * counts.sum()), kind="stable")
    while missing := size - int(given.sum()):
        free = order[given[order] < most[order]]
        given[free[:missing]] += 1
    return given


class Stored(NamedTuple):
    """One class of a stored split.

    Attributes:
        digest: digest of the sorted file names of the class, 8 hex digits.
        letters: t (train), v (val) or e (test) for each of the sorted file names.
    """

    digest: str
    letters: str

    def fits(self, names: Sequence[str]) -> bool:
        """Returns True if these sorted names are the images of the class."""
        return len(names) == len(self.letters) and class_digest(names) == self.digest


def class_digest(names: Sequence[str]) -> str:
    """Digest of sorted names: the first 8 hex digits of their SHA-256."""
    return hashlib.sha256("\n".join(names).encode(errors="surrogateescape")).hexdigest()[:8]


@cache
def stored(name: str) -> Mapping[str, Stored]:
    """Loads a stored split by its name: one `Stored` per class; see splits/README.md."""
    packed = (resources.files("funmatch.data") / "splits" / f"{name}.txt.gz").read_bytes()
    rows = (line.split() for line in gzip.decompress(packed).decode().splitlines())
    return {label: Stored(digest, letters) for label, digest, letters in rows}
