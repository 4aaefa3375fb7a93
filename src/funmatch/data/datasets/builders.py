"""Builders of the data sets: the targets of `conf/data`, which return `Splits`.

Downloads are those of torchvision, with its checksums.
"""

import shutil
from collections.abc import Callable, Sequence
from pathlib import Path

from torchvision import datasets as torchvision
from torchvision.datasets import imagenet as archives

from funmatch.data.datasets import image_folder as folders
from funmatch.data.datasets import imagenet as ilsvrc
from funmatch.data.datasets import torchvision_layouts
from funmatch.data.file_list import DataNotFoundError, DatasetFiles, in_one_line
from funmatch.data.image_files import ImageFiles
from funmatch.data.sources import Splits
from funmatch.runtime import atomic_files


def flowers102(root: str, download: bool = False) -> Splits:
    """Oxford Flowers102; see `torchvision_layouts.flowers102`."""
    files = _read(torchvision_layouts.flowers102, torchvision.Flowers102, root, download)
    return _splits(files, tuple(torchvision.Flowers102.classes))


def pets(root: str, download: bool = False) -> Splits:
    """Oxford-IIIT Pets; see `torchvision_layouts.pets`."""
    return _splits(_read(torchvision_layouts.pets, torchvision.OxfordIIITPet, root, download))


def food101(root: str, download: bool = False) -> Splits:
    """Food-101; see `torchvision_layouts.food101`."""
    return _splits(_read(torchvision_layouts.food101, torchvision.Food101, root, download))


def sun397(root: str, download: bool = False) -> Splits:
    """SUN397; see `torchvision_layouts.sun397`."""
    return _splits(_read(torchvision_layouts.sun397, torchvision.SUN397, root, download))


def imagenet(
    root: str, v2: str | None = None, real: str | None = None, download: bool = False
) -> Splits:
    """ImageNet-1k; see `imagenet.imagenet`.

    Args:
        root: folder of the data set.
        v2: folder of ImageNet-V2, or None.
        real: file of the ReaL labels, or None.
        download: unpack the official archives in root; they are not downloaded.
    """

    def read(path: Path) -> DatasetFiles:
        return ilsvrc.imagenet(path, Path(v2) if v2 else None, Path(real) if real else None)

    return _splits(_read(read, _unpack, root, download))


def folder(
    root: str,
    labels: str = "auto",
    label_column: str | None = None,
    split: Sequence[float] | None = None,
    classes: int | None = None,
) -> Splits:
    """A folder of images; see `image_folder.folder`."""
    return _splits(folders.folder(Path(root), labels, label_column, split, classes))


def _splits(files: DatasetFiles, classes: tuple[str, ...] | None = None) -> Splits:
    """Sources of image files from the file lists of a data set."""
    names = classes or files.classes
    return Splits(
        ImageFiles(files.train, names),
        ImageFiles(files.val, names),
        ImageFiles(files.test, names),
        {name: ImageFiles(listing, names) for name, listing in files.others.items()},
    )


def _read(
    read: Callable[[Path], DatasetFiles], get: Callable[..., object], root: str, download: bool
) -> DatasetFiles:
    """Reads the file lists of a data set, and downloads missing data first if `download` is set."""
    path = Path(root)
    try:
        return read(path)
    except DataNotFoundError:
        if not download:
            raise
    try:
        with atomic_files.lock(path / ".funmatch.lock", wait=True):  # one rank downloads at a time
            get(root=root, download=True)
    except Exception as error:
        raise DataNotFoundError(
            f"root={root}: download=true failed ({in_one_line(error)}); "
            "try again, or copy the data to this folder by other means"
        ) from error
    return read(path)


def _unpack(root: str, download: bool) -> None:
    """Unpacks the archives of ImageNet in root after checking their MD5."""
    path = Path(root)
    if not (path / archives.META_FILE).is_file() and (path / ilsvrc.DEVKIT).is_file():
        archives.parse_devkit_archive(root)
    parse = {"train": archives.parse_train_archive, "val": archives.parse_val_archive}
    for part, archive in ilsvrc.ARCHIVES.items():
        if (path / part).is_dir() or not (path / archive).is_file():
            continue
        # Unpacked under a temporary name: a folder with the final name is complete.
        unfinished = path / f"{part}.unfinished"
        shutil.rmtree(unfinished, ignore_errors=True)
        parse[part](root, folder=unfinished.name)
        unfinished.rename(path / part)
