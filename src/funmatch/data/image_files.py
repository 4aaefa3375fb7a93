"""Image files of any size, decoded on demand on the CPU or a GPU."""

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

# Optional dependency: the same pixels as Pillow's in three quarters of the time; decodes on a GPU.
codec: Any = None
with suppress(ImportError, RuntimeError):  # RuntimeError: built for another version of torch
    codec = import_module("torchcodec.decoders")


class ImageFiles:
    """A source of image files with labels, decoded on demand.

    Each data loader worker has a copy. The names are therefore stored in one bytes object instead
    of a million strings: 43 bytes per image instead of 113, and no reference counts, whose updates
    would copy memory pages in forked workers.

    Args:
        listing: names and labels of the files.
        classes: class names; empty without labels.
    """

    def __init__(self, listing: FileList, classes: tuple[str, ...]) -> None:
        self.classes = classes
        self._root, self._labels = listing.root, listing.labels
        encoded = [name.encode(errors="surrogateescape") for name in listing.names]
        self._names = b"".join(encoded)
        self._ends = np.cumsum([len(name) for name in encoded], dtype=np.int64)
        self._sizes = np.zeros((len(encoded), 2), dtype=np.int32)  # 0: not read yet
        self._fingerprint = ""

    def __len__(self) -> int:
        return len(self._ends)

    def take(self, rows: NDArray[np.int64]) -> "ImageFiles":
        """A selection of the images, in the order of the rows, which may repeat."""
        names = tuple(self.name(row) for row in rows)
        labels = None if self._labels is None else self._labels[rows]
        return ImageFiles(FileList(self._root, names, labels), self.classes)

    def path(self, index: int) -> Path:
        """Path of the file of an image."""
        return self._root / self.name(index)

    def name(self, index: int) -> str:
        """Name of the file of an image, relative to the root."""
        start = int(self._ends[index - 1]) if index else 0
        return self._names[start : int(self._ends[index])].decode(errors="surrogateescape")

    def sizes(self, indices: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Heights and widths [B] in pixels, from the headers of the files; each is read once."""
        for index in indices[self._sizes[indices, 0] == 0]:
            with _opened(self.path(index)) as image:
                self._sizes[index] = image.height, image.width
        heights, widths = self._sizes[indices].astype(np.int64).T
        return heights, widths

    def images(self, indices: NDArray[np.int64]) -> Images:
        """The decoded images in RGB, whatever the mode and format of the files.

        Raises:
            DataNotFoundError: a file is damaged or does not exist.
        """
        sizes = np.stack(self.sizes(indices), axis=1)
        pixels = torch.empty((int(sizes.prod(axis=1).sum()), 3), dtype=torch.uint8)
        images = Images.packed(pixels, sizes)
        for index, target in zip(indices, images, strict=True):
            target.copy_(decoded(self.path(index)))
        return images

    def encoded(self, indices: NDArray[np.int64]) -> list[Tensor]:
        """Input of `on_device`: bytes of JPEG files, uint8 [n]; others decoded, uint8 [3, H, W]."""
        return [_encoded(self.path(index)) for index in indices]

    def labels(self, indices: NDArray[np.int64]) -> Tensor | None:
        """int64 [B]; bool [B, C] if an image may have several correct classes; or None."""
        return None if self._labels is None else torch.from_numpy(self._labels[indices])

    def fingerprint(self) -> str:
        """Digest of names, file sizes and labels; not of contents: those of ImageNet are 150 GB."""
        if not self._fingerprint:
            names = (self.name(index) for index in range(len(self)))
            self._fingerprint = digest(self._root, names, self._labels)
        return self._fingerprint


def decoded(path: Path) -> Tensor:
    """Decodes an image file to uint8 [3, H, W], RGB.

    Raises:
        DataNotFoundError: the file is damaged or does not exist.
    """
    try:
        file = np.fromfile(path, dtype=np.uint8)
        if codec is not None and file[:3].tobytes() == _JPEG and not _is_rotated(path, file):
            return codec.decode_jpeg(torch.from_numpy(file))
        with Image.open(path) as picture:
            # Via RGBA, since Pillow warns of a palette with transparency otherwise.
            opaque = picture.convert("RGBA") if "transparency" in picture.info else picture
            return torch.from_numpy(np.array(opaque.convert("RGB"))).permute(2, 0, 1)
    except Exception as error:  # Pillow and torchcodec raise many types for damaged files
        raise _unreadable(path, error) from error


def on_device(files: list[Tensor], device: torch.device) -> Images:
    """Decodes the files of `ImageFiles.encoded` on a device, as one batch.

    A GPU rounds differently from a CPU: some pixels differ by some grey levels.

    Raises:
        DataNotFoundError: a file is damaged.
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
        if picture.format != "JPEG" or picture.mode not in ("RGB", "L") or not _is_upright(picture):
            return decoded(path)
    return torch.from_numpy(np.fromfile(path, dtype=np.uint8))


_JPEG = b"\xff\xd8\xff"
_EXIF_SEARCH_BYTES = 2**16  # at the start of a file, where the EXIF orientation is stored
_EXIF_ORIENTATION_TAG = 0x0112


def _is_rotated(path: Path, file: NDArray[np.uint8]) -> bool:
    """Returns True if the EXIF orientation rotates or mirrors the image.

    torchcodec applies the orientation; the data sets' own readers do not.
    """
    if b"Exif\0\0" not in file[:_EXIF_SEARCH_BYTES].tobytes():
        return False
    with Image.open(path) as picture:
        return not _is_upright(picture)


def _is_upright(picture: Image.Image) -> bool:
    return picture.getexif().get(_EXIF_ORIENTATION_TAG, 1) == 1


def _opened(path: Path) -> Image.Image:
    try:
        return Image.open(path)
    except Exception as error:
        raise _unreadable(path, error) from error


def _unreadable(path: Path, error: Exception) -> DataNotFoundError:
    return DataNotFoundError(
        f"{path}: cannot be read as an image ({type(error).__name__}); replace or remove it"
    )
