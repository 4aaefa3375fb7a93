"""File lists of ImageNet-1k, and of two further test sets: ReaL labels and ImageNet-V2."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np

from funmatch.data.datasets import stratified_split
from funmatch.data.file_list import (
    DataNotFoundError,
    DatasetFiles,
    FileList,
    folders_in,
    images_below,
    is_image,
    labelled,
    reading,
    require_folder,
)

ARCHIVES = {"train": "ILSVRC2012_img_train.tar", "val": "ILSVRC2012_img_val.tar"}
DEVKIT = "ILSVRC2012_devkit_t12.tar.gz"


def imagenet(root: Path, v2: Path | None = None, real: Path | None = None) -> DatasetFiles:
    """File lists of ImageNet-1k: 98 % of the official train, the rest as val, official val as test.

    The sizes are 1,255,544, 25,623 and 50,000; train and val are a seeded stratified split.

    Args:
        root: folder with train/WNID/*.JPEG and val/WNID/*.JPEG.
        v2: folder of ImageNet-V2, with sub-folders 0 to 999; adds the test set "v2".
        real: real.json, the reassessed labels of the test images in the order of their file names;
            adds the test set "real". An image may have several labels; one without is not counted.

    Raises:
        DataNotFoundError: folders, images or labels are missing or damaged.
    """
    classes = folders_in(require_folder(root, "train", _remedy(root, "train")))
    require_folder(root, "val", _remedy(root, "val"))
    train = _by_class(root, "train", classes)
    test = _by_class(root, "val", classes)
    train, val = stratified_split.split(train, 0.02)
    others: dict[str, FileList] = {}
    if v2 is not None:
        others["v2"] = _v2(v2, len(classes))
    if real is not None:
        others["real"] = _real(real, test, len(classes))
    return DatasetFiles(tuple(classes), train, val, test, others)


def _remedy(root: Path, part: str) -> str:
    needed = [ARCHIVES[part], DEVKIT] if part == "val" else [ARCHIVES[part]]
    if all((root / name).is_file() for name in needed):
        return f"unpack {' and '.join(needed)}, which exist, with download=true"
    return (
        f"give the right root, or copy {' and '.join(needed)} to it "
        "(image-net.org, free for research) and unpack with download=true"
    )


def _by_class(root: Path, part: str, classes: list[str]) -> FileList:
    """Images of a folder with one sub-folder per class."""
    folder = root / part
    again = f"unpack {ARCHIVES[part]} again: remove {folder}, then download=true"
    folders = folders_in(folder)
    if not folders and any(is_image(path.name) for path in folder.iterdir()):
        raise DataNotFoundError(
            f"root={root}: the images in {part} are not sorted into class folders; {again}"
        )
    if extra := sorted(set(folders) - set(classes)):
        raise DataNotFoundError(
            f"root={root}: {part}/{extra[0]} is not a class of train; remove it"
        )
    if lacking := sorted(set(classes) - set(folders)):
        raise DataNotFoundError(
            f"root={root}: {len(lacking)} of the {len(classes)} class folders of {part} are "
            f"missing, first {part}/{lacking[0]}; {again}"
        )
    pairs: list[tuple[str, int]] = []
    for number, name in enumerate(classes):
        images = images_below(folder / name)
        if not images:
            raise DataNotFoundError(f"root={root}: {part}/{name} contains no images; {again}")
        pairs += [(f"{part}/{name}/{image}", number) for image in images]
    return labelled(root, pairs)


def _v2(root: Path, classes: int) -> FileList:
    """File list of ImageNet-V2, whose folders are named by class numbers."""
    remedy = "give the folder imagenetv2-matched-frequency-format-val of Recht et al. 2019"
    pairs: list[tuple[str, int]] = []
    if not root.is_dir():
        raise DataNotFoundError(f"v2={root}: no such folder; {remedy}")
    for name in folders_in(root):
        if not name.isdecimal() or int(name) >= classes:
            raise DataNotFoundError(
                f"v2={root}: {name} is not a class from 0 to {classes - 1}; {remedy}"
            )
        images = images_below(root / name)
        if not images:
            raise DataNotFoundError(f"v2={root}: {name} contains no images; {remedy}")
        pairs += [(f"{name}/{image}", int(name)) for image in images]
    if len({label for _, label in pairs}) < classes:
        raise DataNotFoundError(
            f"v2={root}: some of the {classes} class folders are missing; {remedy}"
        )
    return labelled(root, sorted(pairs, key=lambda pair: (pair[1], pair[0])))


def _real(path: Path, test: FileList, classes: int) -> FileList:
    """The test images with the ReaL labels: one row of correct classes per image."""
    remedy = "give real.json of Beyer et al. 2020, and the complete val of ImageNet"
    right = np.zeros((len(test), classes), dtype=bool)
    with reading(path.parent, path.name, remedy, key=f"real={path}"):
        rows = json.loads(path.read_text(encoding="utf-8"))
        if len(rows) != len(test):
            raise ValueError(f"{len(rows)} rows for {len(test)} images")
        # The rows are sorted by file name, ILSVRC2012_val_00000001.JPEG and so on, not by class.
        order = sorted(range(len(test)), key=lambda i: test.names[i].rpartition("/")[2])
        for i, row in zip(order, rows, strict=True):
            if any(not 0 <= label < classes for label in row):
                raise ValueError(f"a label beyond 0 to {classes - 1}")
            right[i, row] = True
    return replace(test, labels=right)
