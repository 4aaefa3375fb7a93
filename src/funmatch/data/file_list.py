"""File lists: names and labels of the images of a data set, before any image is opened.

Nothing here imports torch, so that missing data is reported in a fraction of a second.
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

# As in torchvision's `ImageFolder`.
SUFFIXES = (".jpg", ".jpeg", ".png", ".ppm", ".bmp", ".pgm", ".tif", ".tiff", ".webp")


class DataNotFoundError(ValueError):
    """Raised for missing or damaged data, with a one-line message: key, path and remedy.

    The caller prepends the group of the key, such as `data.` or `transfer.food101.`.
    """


@dataclass(frozen=True, eq=False)
class FileList:
    """Image files and their labels.

    Attributes:
        root: folder to which the names are relative.
        names: [N], relative paths with forward slashes.
        labels: int64 [N]; bool [N, C] if an image may have several correct classes; or None.
    """

    root: Path
    names: tuple[str, ...]
    labels: Labels | None

    def __len__(self) -> int:
        return len(self.names)

    def take(self, indices: NDArray[np.int64]) -> "FileList":
        """A selection of the images, in the order of the indices."""
        names = tuple(self.names[i] for i in indices)
        return replace(
            self, names=names, labels=None if self.labels is None else self.labels[indices]
        )


@dataclass(frozen=True)
class DatasetFiles:
    """File lists of the splits of a data set.

    Attributes:
        classes: class names; empty without labels.
        train: training images.
        val: validation images, for every choice such as the best checkpoint.
        test: test images, evaluated once at the end.
        others: further test sets, by name.
    """

    classes: tuple[str, ...]
    train: FileList
    val: FileList
    test: FileList
    others: Mapping[str, FileList] = field(default_factory=dict)


def images_below(folder: Path) -> list[str]:
    """Image files below a folder, at any depth: sorted paths relative to it, with forward slashes.

    Hidden files and folders are skipped, since archives made on macOS contain many of them.
    """
    images: list[str] = []
    for parent, folders, files in os.walk(folder, followlinks=True):
        folders[:] = [name for name in folders if not name.startswith(".")]
        prefix = Path(parent).relative_to(folder).as_posix()
        prefix = "" if prefix == "." else f"{prefix}/"
        images += [prefix + name for name in files if is_image(name)]
    return sorted(images)


def is_image(name: str) -> bool:
    """Returns True if a file name, without folders, has an image suffix and is not hidden."""
    return name.lower().endswith(SUFFIXES) and not name.startswith(".")


def folders_in(folder: Path) -> list[str]:
    """Sorted names of the sub-folders that are not hidden."""
    return sorted(p.name for p in folder.iterdir() if p.is_dir() and not p.name.startswith("."))


def require_folder(root: Path, name: str, remedy: str) -> Path:
    """Path of a folder of a data set.

    Args:
        root: root of the data set.
        name: path of the folder relative to root.
        remedy: end of the error message, tells the user what to do.

    Raises:
        DataNotFoundError: the folder does not exist, or is empty.
    """
    folder = root / name
    if not folder.is_dir():
        raise DataNotFoundError(f"root={root}: folder {name} does not exist; {remedy}")
    if not any(folder.iterdir()):
        raise DataNotFoundError(f"root={root}: folder {name} is empty; {remedy}")
    return folder


def require_files(root: Path, names: Iterable[str], by: str, remedy: str) -> None:
    """Checks that all files of an official list exist.

    Args:
        root: folder to which the names are relative.
        names: names of the files.
        by: name of the list, for the error message.
        remedy: end of the error message, tells the user what to do.

    Raises:
        DataNotFoundError: files are missing; the message has their number and the first name.
    """
    names = sorted(set(names))
    # Lists each folder once: one query per file takes minutes on a network drive.
    existing: dict[str, set[str]] = {}
    for folder in {name.rpartition("/")[0] for name in names}:
        path = root / folder
        existing[folder] = {entry.name for entry in path.iterdir()} if path.is_dir() else set()
    missing = [n for n in names if n.rpartition("/")[2] not in existing[n.rpartition("/")[0]]]
    if missing:
        raise DataNotFoundError(
            f"root={root}: {len(missing)} of the {len(names)} images listed in {by} are missing, "
            f"first {missing[0]}; {remedy}"
        )


@contextmanager
def reading(root: Path, name: str, remedy: str, key: str | None = None) -> Iterator[Path]:
    """Context in which a list is parsed: any exception becomes a `DataNotFoundError` of one line.

    Args:
        root: folder to which the name is relative.
        name: path of the list.
        remedy: end of the error message, tells the user what to do.
        key: start of the error message, the key and its value; `root=...` by default.

    Yields:
        The path of the list.

    Raises:
        DataNotFoundError: the list does not exist, or the block raises an exception.
    """
    key = key or f"root={root}"
    if not (root / name).is_file():
        raise DataNotFoundError(f"{key}: file {name} does not exist; {remedy}")
    try:
        yield root / name
    except DataNotFoundError:
        raise
    except Exception as error:
        raise DataNotFoundError(
            f"{key}: {name} is damaged ({in_one_line(error)}); {remedy}"
        ) from error


def in_one_line(error: Exception) -> str:
    """Type and message of an exception in one line of limited length."""
    return f"{type(error).__name__}: {' '.join(str(error).split())[:160]}"


def digest(root: Path, names: Iterable[str], labels: Labels | None) -> str:
    """SHA-256 digest of names, file sizes and labels, in hex.

    The contents of the files are not hashed: those of ImageNet are 150 GB.
    """
    sha = hashlib.sha256()
    for name in names:
        sha.update(f"{name}\0{(root / name).stat().st_size}\n".encode(errors="surrogateescape"))
    if labels is not None:
        sha.update(f"{labels.dtype.str} {labels.shape}".encode())
        sha.update(np.ascontiguousarray(labels).tobytes())
    return sha.hexdigest()


def labelled(root: Path, pairs: Sequence[tuple[str, int]]) -> FileList:
    """A file list from pairs of a name and a class number."""
    labels = np.array([label for _, label in pairs], dtype=np.int64)
    return FileList(root, tuple(name for name, _ in pairs), labels)
