"""ImageNet-1k on disk, with the two further test sets that the field reports: ReaL and V2."""

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
    """ImageNet-1k: 98 % of train, by the seeded stratified split, the rest as val, val as test.

    So the sizes are 1,255,544, 25,623 and 50,000.

    Args:
        root: with train/WNID/*.JPEG and val/WNID/*.JPEG.
        v2: a folder of ImageNet-V2, with sub-folders 0 to 999.
        real: real.json, the reassessed labels of the test images in the order of their file names;
            several may be right, and an image without any is not counted.
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
        return f"unpack {' and '.join(needed)}, which are there, with download=true"
    return (
        f"give the right root, or put {' and '.join(needed)} there "
        "(image-net.org, free for research) and unpack with download=true"
    )


def _by_class(root: Path, part: str, classes: list[str]) -> FileList:
    """The images of a folder with a sub-folder for each class."""
    folder = root / part
    again = f"unpack {ARCHIVES[part]} again: remove {folder}, then download=true"
    found = folders_in(folder)
    if not found and any(is_image(path.name) for path in folder.iterdir()):
        raise DataNotFoundError(
            f"root={root}: the images in {part} are not sorted into class folders; {again}"
        )
    if extra := sorted(set(found) - set(classes)):
        raise DataNotFoundError(f"root={root}: {part}/{extra[0]} is no class of train; remove it")
    if lacking := sorted(set(classes) - set(found)):
        raise DataNotFoundError(
            f"root={root}: {len(lacking)} of the {len(classes)} class folders of {part} are "
            f"missing, first {part}/{lacking[0]}; {again}"
        )
    pairs: list[tuple[str, int]] = []
    for number, name in enumerate(classes):
        images = images_below(folder / name)
        if not images:
            raise DataNotFoundError(f"root={root}: {part}/{name} holds no images; {again}")
        pairs += [(f"{part}/{name}/{image}", number) for image in images]
    return labelled(root, pairs)


def _v2(root: Path, classes: int) -> FileList:
    """ImageNet-V2: the names of its folders are class numbers."""
    remedy = "give the folder imagenetv2-matched-frequency-format-val of Recht et al. 2019"
    pairs: list[tuple[str, int]] = []
    if not root.is_dir():
        raise DataNotFoundError(f"v2={root}: no such folder; {remedy}")
    for name in folders_in(root):
        if not name.isdecimal() or int(name) >= classes:
            raise DataNotFoundError(
                f"v2={root}: {name} is no class from 0 to {classes - 1}; {remedy}"
            )
        images = images_below(root / name)
        if not images:
            raise DataNotFoundError(f"v2={root}: {name} holds no images; {remedy}")
        pairs += [(f"{name}/{image}", int(name)) for image in images]
    if len({label for _, label in pairs}) < classes:
        raise DataNotFoundError(
            f"v2={root}: some of the {classes} class folders are missing; {remedy}"
        )
    return labelled(root, sorted(pairs, key=lambda pair: (pair[1], pair[0])))


def _real(path: Path, test: FileList, classes: int) -> FileList:
    """The reassessed labels, one row of right classes for each test image."""
    remedy = "give real.json of Beyer et al. 2020, and the whole val of ImageNet"
    right = np.zeros((len(test), classes), dtype=bool)
    with reading(path.parent, path.name, remedy, key=f"real={path}"):
        rows = json.loads(path.read_text(encoding="utf-8"))
        if len(rows) != len(test):
            raise ValueError(f"{len(rows)} rows for {len(test)} images")
        # The rows are in the order of ILSVRC2012_val_00000001.JPEG and so on, whatever their class.
        order = sorted(range(len(test)), key=lambda i: test.names[i].rpartition("/")[2])
        for i, row in zip(order, rows, strict=True):
            if any(not 0 <= label < classes for label in row):
                raise ValueError(f"a label beyond 0 to {classes - 1}")
            right[i, row] = True
    return replace(test, labels=right)
