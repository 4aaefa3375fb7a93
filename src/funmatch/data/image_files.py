"""Images of any size, decoded from their files."""

from contextlib import suppress
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from funmatch.core.images import Images
from funmatch.data.file_list import DataNotFoundError, FileList, digest

# An extra: the same pixels as Pillow's in three quarters of the time, and on a GPU.
codec: Any = None
with suppress(ImportError, RuntimeError):  # the latter beside a torch that it was not built for
    codec = import_module("torchcodec.decoders")


class ImageFiles:
    """Image files with their labels, decoded when they are asked for.

    Each worker holds them all. So the names are one run of bytes and not a million strings: that
    is 43 bytes an image instead of 113, and no reference counts for a worker to write to, which
    would copy the memory page under them.

    Args:
        listing: of files and labels.
        classes: their names.
    """

    def __init__(self, listing: FileList, classes: tuple[str, ...]) -> None:
        self.classes = classes
        self._root, self._labels = listing.root, listing.labels
        encoded = [name.encode(errors="surrogateescape") for name in listing.names]
        self._names = b"".join(encoded)
        self._ends = np.cumsum([len(name) for name in encoded], dtype=np.int64)
        self._sizes = np.zeros((len(encoded), 2), dtype=np.int32)  # 0: not yet looked at
        self._fingerprint = ""

    def __len__(self) -> int:
        return len(self._ends)

    def take(self, rows: NDArray[np.int64]) -> "ImageFiles":
        """Some of the images, in the order of the rows; some may come several times."""
        names = tuple(self.name(row) for row in rows)
        labels = None if self._labels is None else self._labels[rows]
        return ImageFiles(FileList(self._root, names, labels), self.classes)

    def path(self, index: int) -> Path:
        """The file's."""
        return self._root / self.name(index)

    def name(self, index: int) -> str:
        """The file's name below the root."""
        start = int(self._ends[index - 1]) if index else 0
        return self._names[start : int(self._ends[index])].decode(errors="surrogateescape")

    def sizes(self, indices: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """From the headers of the files, each read once."""
        for index in indices[self._sizes[indices, 0] == 0]:
            with _opened(self.path(index)) as image:
                self._sizes[index] = image.height, image.width
        heights, widths = self._sizes[indices].astype(np.int64).T
        return heights, widths

    def images(self, indices: NDArray[np.int64]) -> Images:
        """RGB, of whatever mode and format the files are.

        Raises:
            MissingData: a file is damaged, or gone.
        """
        sizes = np.stack(self.sizes(indices), axis=1)
        pixels = torch.empty((int(sizes.prod(axis=1).sum()), 3), dtype=torch.uint8)
        images = Images.packed(pixels, sizes)
        for index, place in zip(indices, images, strict=True):
            place.copy_(decoded(self.path(index)))
        return images

    def encoded(self, indices: NDArray[np.int64]) -> list[Tensor]:
        """What `on_device` decodes: bytes of JPEG files, uint8 [n]; others decoded, [3, H, W]."""
        return [_encoded(self.path(index)) for index in indices]

    def labels(self, indices: NDArray[np.int64]) -> Tensor | None:
        """int64 [B]; or bool [B, C] where several classes are right."""
        return None if self._labels is None else torch.from_numpy(self._labels[indices])

    def fingerprint(self) -> str:
        """Of names, file sizes and labels, not of contents: those of ImageNet are 150 GB."""
        if not self._fingerprint:
            names = (self.name(index) for index in range(len(self)))
            self._fingerprint = digest(self._root, names, self._labels)
        return self._fingerprint


def decoded(path: Path) -> Tensor:
    """An image file as uint8 [3, H, W], RGB."""
    try:
        file = np.fromfile(path, dtype=np.uint8)
        if codec is not None and file[:3].tobytes() == _JPEG and not _turned(path, file):
            return codec.decode_jpeg(torch.from_numpy(file))
        with Image.open(path) as picture:
            # Pillow warns of a palette with transparency unless it goes through RGBA.
            through = picture.convert("RGBA") if "transparency" in picture.info else picture
            return torch.from_numpy(np.array(through.convert("RGB"))).permute(2, 0, 1)
    except Exception as error:  # of many kinds
        raise _unreadable(path, error) from error


def on_device(files: list[Tensor], device: torch.device) -> Images:
    """Images of `Photographs.encoded`, decoded together where they are needed.

    A GPU rounds otherwise than a CPU: some pixels differ by some grey levels.

    Raises:
        MissingData: a file is damaged.
    """
    jpegs = [file for file in files if file.ndim == 1]
    try:
        decoded = iter(codec.decode_jpeg(jpegs, device=device) if jpegs else [])
    except RuntimeError as error:
        reason = str(error).partition("\n")[0]
        raise DataNotFoundError(f"decode=device: {reason}; decode=host names the file") from error
    return Images.of(next(decoded) if file.ndim == 1 else file.to(device) for file in files)


def _encoded(path: Path) -> Tensor:
    with _opened(path) as picture:
        if picture.format != "JPEG" or picture.mode not in ("RGB", "L") or not _upright(picture):
            return decoded(path)
    return torch.from_numpy(np.fromfile(path, dtype=np.uint8))


_JPEG = b"\xff\xd8\xff"
_HEAD = 2**16  # bytes, in which a file says how the camera was held
_ORIENTATION = 0x0112


def _turned(path: Path, file: NDArray[np.uint8]) -> bool:
    """Whether a viewer would turn the image: torchcodec does, the data sets' own readers do not."""
    if b"Exif\0\0" not in file[:_HEAD].tobytes():
        return False
    with Image.open(path) as picture:
        return not _upright(picture)


def _upright(picture: Image.Image) -> bool:
    return picture.getexif().get(_ORIENTATION, 1) == 1


def _opened(path: Path) -> Image.Image:
    try:
        return Image.open(path)
    except Exception as error:
        raise _unreadable(path, error) from error


def _unreadable(path: Path, error: Exception) -> DataNotFoundError:
    return DataNotFoundError(
        f"{path}: cannot be read as an image ({type(error).__name__}); replace or remove it"
    )
