"""What `data=...` builds: the splits of a data set that lies on disk, or is downloaded first.

Downloads are torchvision's, with its checksums.
"""

import shutil
from collections.abc import Callable, Sequence
from pathlib import Path

from torchvision import datasets as torchvision
from torchvision.datasets import imagenet as archives

from funmatch import files
from funmatch.data import folder as folders
from funmatch.data import imagenet as ilsvrc
from funmatch.data import layouts
from funmatch.data.listing import Listings, MissingData, in_one_line
from funmatch.data.photographs import Photographs
from funmatch.data.source import Splits


def flowers102(root: str, download: bool = False) -> Splits:
    """Oxford Flowers102; see `layouts.flowers102`."""
    found = _read(layouts.flowers102, torchvision.Flowers102, root, download)
    return _splits(found, tuple(torchvision.Flowers102.classes))


def pets(root: str, download: bool = False) -> Splits:
    """Oxford-IIIT Pets; see `layouts.pets`."""
    return _splits(_read(layouts.pets, torchvision.OxfordIIITPet, root, download))


def food101(root: str, download: bool = False) -> Splits:
    """Food-101; see `layouts.food101`."""
    return _splits(_read(layouts.food101, torchvision.Food101, root, download))


def sun397(root: str, download: bool = False) -> Splits:
    """SUN397; see `layouts.sun397`."""
    return _splits(_read(layouts.sun397, torchvision.SUN397, root, download))


def imagenet(
    root: str, v2: str | None = None, real: str | None = None, download: bool = False
) -> Splits:
    """ImageNet-1k; see `imagenet.imagenet`. `download` unpacks the official archives in root."""

    def read(path: Path) -> Listings:
        return ilsvrc.imagenet(path, Path(v2) if v2 else None, Path(real) if real else None)

    return _splits(_read(read, _unpack, root, download))


def folder(
    root: str,
    labels: str = "auto",
    label_column: str | None = None,
    split: Sequence[float] | None = None,
    classes: int | None = None,
) -> Splits:
    """Anybody's folder of images; see `folder.folder`."""
    return _splits(folders.folder(Path(root), labels, label_column, split, classes))


def _splits(found: Listings, classes: tuple[str, ...] | None = None) -> Splits:
    """From listings to images."""
    names = classes or found.classes
    return Splits(
        Photographs(found.train, names),
        Photographs(found.val, names),
        Photographs(found.test, names),
        {name: Photographs(listing, names) for name, listing in found.others.items()},
    )


def _read(
    read: Callable[[Path], Listings], get: Callable[..., object], root: str, download: bool
) -> Listings:
    """Reads a layout; gets what is missing first if that is wished."""
    path = Path(root)
    try:
        return read(path)
    except MissingData:
        if not download:
            raise
    try:
        with files.lock(path / ".funmatch.lock", wait=True):  # one of all ranks
            get(root=root, download=True)
    except Exception as error:
        raise MissingData(
            f"root={root}: download=true failed ({in_one_line(error)}); "
            "try again, or put the data there by other means"
        ) from error
    return read(path)


def _unpack(root: str, download: bool) -> None:
    """Unpacks the archives of ImageNet that lie in root, checked by their MD5."""
    path = Path(root)
    if not (path / archives.META_FILE).is_file() and (path / ilsvrc.DEVKIT).is_file():
        archives.parse_devkit_archive(root)
    parse = {"train": archives.parse_train_archive, "val": archives.parse_val_archive}
    for part, archive in ilsvrc.ARCHIVES.items():
        if (path / part).is_dir() or not (path / archive).is_file():
            continue
        # A kill leaves a part of it: what has its final name is whole.
        unfinished = path / f"{part}.unfinished"
        shutil.rmtree(unfinished, ignore_errors=True)
        parse[part](root, folder=unfinished.name)
        unfinished.rename(path / part)
