"""What a data set holds, before any image is opened: file names and labels.

Nothing here imports torch, so that data which is not there is found in a fraction of a second.
"""

import hashlib
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

Labels = NDArray[np.int64] | NDArray[np.bool_]

# As torchvision's folders have it.
SUFFIXES = (".jpg", ".jpeg", ".png", ".ppm", ".bmp", ".pgm", ".tif", ".tiff", ".webp")


class DataNotFoundError(ValueError):
    """Data that is not there, or damaged: one line with key, place and remedy.

    The caller puts in front where the key belongs: `data.` or `transfer.food101.`.
    """


@dataclass(frozen=True, eq=False)
class FileList:
    """Image files and their labels.

    Attributes:
        root: the folder that the names are relative to.
        names: [N], posix.
        labels: int64 [N]; or bool [N, C] where several classes are right; or None.
    """

    root: Path
    names: tuple[str, ...]
    labels: Labels | None

    def __len__(self) -> int:
        return len(self.names)

    def take(self, indices: NDArray[np.int64]) -> "FileList":
        """Some of the images, in the order of the indices."""
        names = tuple(self.names[i] for i in indices)
        return replace(
            self, names=names, labels=None if self.labels is None else self.labels[indices]
        )


@dataclass(frozen=True)
class DatasetFiles:
    """The parts of a data set.

    Attributes:
        classes: their names; empty where there are no labels.
        train: what is taught on.
        val: what every choice is made on.
        test: what is looked at once, at the end.
        others: further test sets, by name.
    """

    classes: tuple[str, ...]
    train: FileList
    val: FileList
    test: FileList
    others: Mapping[str, FileList] = field(default_factory=dict)


def images_below(folder: Path) -> list[str]:
    """The image files below a folder, at any depth: sorted posix names relative to it.

    Hidden files and folders are no part of a data set: archives made on a Mac are full of them.
    """
    found: list[str] = []
    for place, folders, files in os.walk(folder, followlinks=True):
        folders[:] = [name for name in folders if not name.startswith(".")]
        prefix = Path(place).relative_to(folder).as_posix()
        prefix = "" if prefix == "." else f"{prefix}/"
        found += [prefix + name for name in files if is_image(name)]
    return sorted(found)


def is_image(name: str) -> bool:
    """Whether a file name without folders is that of an image, and not hidden."""
    return name.lower().endswith(SUFFIXES) and not name.startswith(".")


def folders_in(folder: Path) -> list[str]:
    """The sorted names of the sub-folders that are not hidden."""
    return sorted(p.name for p in folder.iterdir() if p.is_dir() and not p.name.startswith("."))


def require_folder(root: Path, name: str, remedy: str) -> Path:
    """A folder of a layout.

    Raises:
        MissingData: it is not there, or empty.
    """
    folder = root / name
    if not folder.is_dir():
        raise DataNotFoundError(f"root={root}: no folder {name} there; {remedy}")
    if not any(folder.iterdir()):
        raise DataNotFoundError(f"root={root}: the folder {name} is empty; {remedy}")
    return folder


def require_files(root: Path, names: Iterable[str], by: str, remedy: str) -> None:
    """Checks that the files which an official list names are there.

    Raises:
        MissingData: some are not; says how many, and which is the first.
    """
    names = sorted(set(names))
    # One reading of each folder: a question per file takes minutes on a network drive.
    there: dict[str, set[str]] = {}
    for folder in {name.rpartition("/")[0] for name in names}:
        path = root / folder
        there[folder] = {entry.name for entry in path.iterdir()} if path.is_dir() else set()
    missing = [n for n in names if n.rpartition("/")[2] not in there[n.rpartition("/")[0]]]
    if missing:
        raise DataNotFoundError(
            f"root={root}: {len(missing)} of the {len(names)} images that {by} names are missing, "
            f"first {missing[0]}; {remedy}"
        )


@contextmanager
def reading(root: Path, name: str, remedy: str, key: str | None = None) -> Iterator[Path]:
    """Reads an official list: whatever a parser makes of a damaged file becomes one line.

    Args:
        root: the folder that the name is relative to.
        name: of the list.
        remedy: what to do where it cannot be read.
        key: and value that led to it; `root=...` unless given.

    Raises:
        MissingData: the list is not there, or damaged.
    """
    key = key or f"root={root}"
    if not (root / name).is_file():
        raise DataNotFoundError(f"{key}: no {name} there; {remedy}")
    try:
        yield root / name
    except DataNotFoundError:
        raise
    except Exception as error:
        raise DataNotFoundError(
            f"{key}: {name} is damaged ({in_one_line(error)}); {remedy}"
        ) from error


def in_one_line(error: Exception) -> str:
    """What a library says of a failure, without its line breaks."""
    return f"{type(error).__name__}: {' '.join(str(error).split())[:160]}"


def digest(root: Path, names: Iterable[str], labels: Labels | None) -> str:
    """Of names, file sizes and labels: SHA-256 in hex.

    Not of the contents: those of ImageNet are 150 GB.
    """
    found = hashlib.sha256()
    for name in names:
        found.update(f"{name}\0{(root / name).stat().st_size}\n".encode(errors="surrogateescape"))
    if labels is not None:
        found.update(f"{labels.dtype.str} {labels.shape}".encode())
        found.update(np.ascontiguousarray(labels).tobytes())
    return found.hexdigest()


def labelled(root: Path, pairs: Sequence[tuple[str, int]]) -> FileList:
    """A listing from names with their classes."""
    labels = np.array([label for _, label in pairs], dtype=np.int64)
    return FileList(root, tuple(name for name, _ in pairs), labels)
