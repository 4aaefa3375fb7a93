"""File lists of Flowers102, Pets, Food-101 and SUN397, in the folder layouts of torchvision.

They are read here and not by torchvision, to report damaged data in one line and without importing
torch. Names are relative to `root`, the same folder as the `root` of torchvision's data sets.
"""

import json
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from funmatch.data.datasets import stratified_split
from funmatch.data.file_list import (
    DataNotFoundError,
    DatasetFiles,
    FileList,
    images_below,
    labelled,
    reading,
    require_files,
    require_folder,
)


def _download(size: str) -> str:
    return f"give the right root, or download it ({size}) with download=true"


def _repair(base: Path) -> str:
    # The folder must be removed: if it exists, torchvision does not download again.
    return f"extract its archive again, or remove {base} and download it again with download=true"


def flowers102(root: Path) -> DatasetFiles:
    """Oxford Flowers102, the official splits: 1020 train, 1020 val, 6149 test.

    Layout: flowers-102/{jpg/image_00001.jpg, imagelabels.mat, setid.mat}.
    """
    from scipy.io import loadmat  # here, since the import takes half a second

    remedy = _download("345 MB")
    base = require_folder(root, "flowers-102", remedy)
    with reading(root, "flowers-102/imagelabels.mat", remedy) as path:
        labels = np.atleast_1d(loadmat(path, squeeze_me=True)["labels"]).astype(np.int64) - 1
        if labels.min() < 0 or labels.max() >= 102:
            raise ValueError("labels outside 1 to 102")
    parts: list[FileList] = []
    with reading(root, "flowers-102/setid.mat", remedy) as path:
        numbers = loadmat(path, squeeze_me=True)
        for part in ("trnid", "valid", "tstid"):
            ids = np.atleast_1d(numbers[part]).astype(np.int64)
            if not len(ids) or ids.min() < 1 or ids.max() > len(labels):
                raise ValueError(f"{part} names images that are not in imagelabels.mat")
            names = tuple(f"flowers-102/jpg/image_{number:05d}.jpg" for number in ids)
            parts.append(FileList(root, names, labels[ids - 1]))
    every = [name for part in parts for name in part.names]
    require_files(root, every, "flowers-102/setid.mat", _repair(base))
    train, val, test = parts
    return DatasetFiles(tuple(f"{number:03d}" for number in range(1, 103)), train, val, test)


def pets(root: Path) -> DatasetFiles:
    """Oxford-IIIT Pets: 90 % of the official trainval as train, 10 % as val.

    Val is a seeded stratified split; test is the official one.

    Layout: oxford-iiit-pet/{images, annotations/{trainval,test}.txt}.
    """
    base = require_folder(root, "oxford-iiit-pet", _download("811 MB"))
    classes: dict[int, str] = {}
    lists: dict[str, list[tuple[str, int]]] = {}
    for part in ("trainval", "test"):
        name = f"oxford-iiit-pet/annotations/{part}.txt"
        with reading(root, name, _repair(base)) as path:
            rows = [line.split() for line in path.read_text(encoding="utf-8").splitlines()]
            lists[part] = [(f"oxford-iiit-pet/images/{i}.jpg", int(c) - 1) for i, c, _, _ in rows]
            classes |= {int(c) - 1: i.rpartition("_")[0] for i, c, _, _ in rows}
            if sorted(classes) != list(range(len(classes))) or not rows:
                raise ValueError("its classes are not numbered from 1")
    every = [name for pairs in lists.values() for name, _ in pairs]
    require_files(root, every, "oxford-iiit-pet/annotations", _repair(base))
    titles = (" ".join(word.title() for word in classes[c].split("_")) for c in sorted(classes))
    train, val = stratified_split.split(labelled(root, lists["trainval"]), 0.1)
    return DatasetFiles(tuple(titles), train, val, labelled(root, lists["test"]))


def food101(root: Path) -> DatasetFiles:
    """Food-101: 90 % of the official train as train, 10 % as val.

    Val is a seeded stratified split; test is the official one.

    Layout: food-101/{images/CLASS/NUMBER.jpg, meta/{train,test}.json}.
    """
    base = require_folder(root, "food-101", _download("5 GB"))
    lists: dict[str, list[tuple[str, int]]] = {}
    classes: list[str] = []
    for part in ("train", "test"):
        with reading(root, f"food-101/meta/{part}.json", _repair(base)) as path:
            images: dict[str, list[str]] = json.loads(path.read_text(encoding="utf-8"))
            classes = classes or sorted(images)
            if sorted(images) != classes or not all(images.values()):
                raise ValueError("classes without images, or other classes than in train.json")
            lists[part] = [
                (f"food-101/images/{name}.jpg", number)
                for number, label in enumerate(classes)
                for name in images[label]
            ]
    every = [name for pairs in lists.values() for name, _ in pairs]
    require_files(root, every, "food-101/meta", _repair(base))
    train, val = stratified_split.split(labelled(root, lists["train"]), 0.1)
    return DatasetFiles(tuple(classes), train, val, labelled(root, lists["test"]))


def sun397(root: Path) -> DatasetFiles:
    """SUN397: the split of the paper's authors, 76,128 train, 10,875 val, 21,750 test.

    Layout: SUN397/{ClassName.txt, a/abbey/sun_*.jpg}. A tree in this layout with none of the
    official images is split 70/10/20 by the seeded stratified split.
    """
    base = require_folder(root, "SUN397", _download("39 GB"))
    repair = _repair(base)
    with reading(root, "SUN397/ClassName.txt", repair) as path:
        folders = [line.strip().removeprefix("/") for line in path.read_text().splitlines()]
        if not all(folder[1:2] == "/" for folder in folders) or not folders:
            raise ValueError("its lines are not like /a/abbey")
    numbers = {folder: number for number, folder in enumerate(folders)}
    images: dict[str, list[str]] = {folder: [] for folder in folders}
    for name in images_below(base):
        folder, _, file = name.rpartition("/")
        if not file.startswith("sun_") or not file.endswith(".jpg"):
            continue
        if folder not in numbers:
            raise DataNotFoundError(
                f"root={root}: the class of SUN397/{name} is not in ClassName.txt; {repair}"
            )
        if name != _UNDECODABLE:
            images[folder].append(name)
    if empty := [folder for folder in folders if not images[folder]]:
        raise DataNotFoundError(
            f"root={root}: {len(empty)} of the {len(folders)} classes in SUN397/ClassName.txt have "
            f"no images, first SUN397/{empty[0]}; {repair}"
        )
    every = labelled(root, [(f"SUN397/{n}", numbers[f]) for f in folders for n in images[f]])
    stored = _stored(root, images)
    if stored is None:
        train, val, test = stratified_split.split(every, 0.1, 0.2)
    else:
        train, val, test = (every.take(part) for part in stored)
    return DatasetFiles(tuple(folder[2:] for folder in folders), train, val, test)


# This image of the archive cannot be decoded; the stored split does not contain it.
_UNDECODABLE = "c/church/outdoor/sun_bhenjvsvrtumjuri.jpg"


def _stored(root: Path, images: dict[str, list[str]]) -> list[NDArray[np.int64]] | None:
    """Indices of train, val and test by the stored split; None if no class is the official one."""
    official = stratified_split.stored("sun397")
    odd = [f for f, part in official.items() if not part.fits(images.get(f, []))]
    if len(odd) == len(official):
        return None
    if odd or len(images) != len(official):
        first = (odd or sorted(images.keys() - official.keys()))[0]
        wanted = len(official[first].letters) if first in official else 0
        raise DataNotFoundError(
            f"root={root}: SUN397 is incomplete: {len(official) - len(odd)} of its "
            f"{len(official)} classes are complete, SUN397/{first} has "
            f"{len(images.get(first, []))} images, not the {wanted} of the official list; "
            f"{_repair(root / 'SUN397')}"
        )
    letters = np.array([letter for folder in images for letter in official[folder].letters])
    return [np.flatnonzero(letters == letter) for letter in "tve"]
