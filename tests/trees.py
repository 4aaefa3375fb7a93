"""Small trees in the true layouts of data sets, the same on every call; and how data is refused."""

import hashlib
import json
import tarfile
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from scipy.io import savemat

from funmatch.data.file_list import DataNotFoundError, DatasetFiles, FileList


def plant(folder: Path, name: str) -> Path:
    """Makes the tree of a data set in a folder of its own: the root to give."""
    root = folder / name
    globals()[name](root)
    return root


def refused(read: Callable[[], object]) -> str:
    """The one line of the error of data that is missing or damaged."""
    with pytest.raises(DataNotFoundError) as caught:
        read()
    line = str(caught.value)
    assert "\n" not in line
    return line


def parts(listings: DatasetFiles) -> list[FileList]:
    return [listings.train, listings.val, listings.test]


def pairs(*listings: FileList) -> list[tuple[str, int]]:
    """Absolute paths with labels."""
    listed: list[tuple[str, int]] = []
    for part in listings:
        assert part.labels is not None
        paths = [str(part.root / name) for name in part.names]
        listed += zip(paths, part.labels.tolist(), strict=True)
    return listed


def photograph(path: Path, *, label: int = 0, number: int = 0) -> None:
    """A small image of its own size: a colour for the class, and noise of its own."""
    rng = np.random.default_rng([label, number])
    height, width = rng.integers(18, 27, 2)
    colour = np.random.default_rng(label).integers(40, 216, 3)
    noise = rng.integers(-40, 40, (height, width, 3))
    path.parent.mkdir(parents=True, exist_ok=True)
    kind = "PNG" if path.suffix == ".png" else "JPEG"
    Image.fromarray((colour + noise).astype(np.uint8)).save(path, kind, quality=90)


def class_folders(root: Path, classes: Sequence[str], each: int, suffix: str = ".jpg") -> None:
    """root/CLASS/NUMBER.jpg."""
    for label, name in enumerate(classes):
        for number in range(each):
            photograph(root / name / f"{name}_{number}{suffix}", label=label, number=number)


def flowers102(root: Path, *, classes: int = 5) -> None:
    """Of every class 2 train, 2 val and 3 test images; the numbers of the images run wild."""
    base = root / "flowers-102"
    labels = np.tile(np.arange(classes), 7)
    numbers = np.random.default_rng(0).permutation(len(labels)) + 1
    for number, label in enumerate(labels):
        photograph(base / "jpg" / f"image_{number + 1:05d}.jpg", label=label, number=number)
    parts = np.split(
        numbers[np.argsort(labels[numbers - 1], kind="stable")].reshape(classes, 7).T, [2, 4]
    )
    names = ("trnid", "valid", "tstid")
    savemat(base / "imagelabels.mat", {"labels": labels[None] + 1})
    savemat(base / "setid.mat", {n: p.reshape(1, -1) for n, p in zip(names, parts, strict=True)})


def pets(
    root: Path, *, classes: Sequence[str] = ("Abyssinian", "american_bulldog", "Bengal")
) -> None:
    """Of every class 10 images of trainval and 4 of test."""
    base = root / "oxford-iiit-pet"
    lines: dict[str, list[str]] = {"trainval": [], "test": []}
    for label, name in enumerate(classes):
        for number in range(14):
            part = "trainval" if number < 10 else "test"
            photograph(base / "images" / f"{name}_{number}.jpg", label=label, number=number)
            lines[part].append(f"{name}_{number} {label + 1} {1 + name.islower()} {number}\n")
    (base / "annotations").mkdir()
    for part, rows in lines.items():
        (base / "annotations" / f"{part}.txt").write_text("".join(rows))


def food101(root: Path, *, classes: Sequence[str] = ("waffles", "apple_pie", "sushi")) -> None:
    """Of every class 10 images of train and 4 of test."""
    base = root / "food-101"
    lists: dict[str, dict[str, list[str]]] = {"train": {}, "test": {}}
    for label, name in enumerate(classes):
        for number in range(14):
            part = lists["train" if number < 10 else "test"]
            photograph(base / "images" / name / f"{1000 + number}.jpg", label=label, number=number)
            part.setdefault(name, []).append(f"{name}/{1000 + number}")
    (base / "meta").mkdir()
    for part_name, images in lists.items():
        (base / "meta" / f"{part_name}.json").write_text(json.dumps(images))
    (base / "meta" / "classes.txt").write_text("\n".join(sorted(classes)))


def sun397(
    root: Path, *, classes: Sequence[str] = ("a/abbey", "b/bar", "c/church/outdoor")
) -> None:
    """Of every class 10 images, none of them official."""
    base = root / "SUN397"
    for label, name in enumerate(classes):
        for number in range(10):
            photograph(base / name / f"sun_mine{number}.jpg", label=label, number=number)
    (base / "ClassName.txt").write_text("".join(f"/{name}\n" for name in classes))


WNIDS = ("n01440764", "n01443537", "n02102040")


def imagenet(root: Path) -> None:
    """Of every class 20 train and 4 val images; val is numbered across the classes."""
    for label, wnid in enumerate(WNIDS):
        for number in range(20):
            path = root / "train" / wnid / f"{wnid}_{number}.JPEG"
            photograph(path, label=label, number=number)
        for number in range(4):
            folder = 1 + number * len(WNIDS) + (label + number) % len(WNIDS)
            path = root / "val" / wnid / f"ILSVRC2012_val_{folder:08d}.JPEG"
            photograph(path, label=label, number=100 + number)


def imagenet_v2(folder: Path) -> None:
    """Two images in each folder, which is a class number."""
    for label in range(len(WNIDS)):
        for number in range(2):
            photograph(folder / str(label) / f"{number}.jpeg", label=label, number=number)


def imagenet_archives(root: Path, made: Path) -> dict[str, tuple[str, str]]:
    """The archives of image-net.org, of the tree `made`; returns torchvision's table of them."""
    root.mkdir(parents=True, exist_ok=True)
    val = sorted((made / "val").rglob("*.JPEG"), key=lambda path: path.name)
    with tarfile.open(root / "ILSVRC2012_img_val.tar", "w") as tar:
        for path in val:
            tar.add(path, path.name)
    inner = made.parent / "inner"
    inner.mkdir()
    with tarfile.open(root / "ILSVRC2012_img_train.tar", "w") as tar:
        for wnid in WNIDS:
            with tarfile.open(inner / f"{wnid}.tar", "w") as part:
                for path in sorted((made / "train" / wnid).iterdir()):
                    part.add(path, path.name)
            tar.add(inner / f"{wnid}.tar", f"{wnid}.tar")
    kit = inner / "ILSVRC2012_devkit_t12" / "data"
    kit.mkdir(parents=True)
    # The numbers of the classes in the kit are not those of the sorted names.
    kinds = ["ILSVRC2012_ID", "WNID", "words", "gloss", "num_children"]
    synsets = np.zeros(len(WNIDS), dtype=[(kind, object) for kind in kinds])
    for i, wnid in enumerate(reversed(WNIDS)):
        synsets[i] = (i + 1, wnid, f"thing {wnid}, object", "a thing", 0)
    savemat(kit / "meta.mat", {"synsets": synsets})
    truth = [str(1 + WNIDS[::-1].index(path.parent.name)) for path in val]
    (kit / "ILSVRC2012_validation_ground_truth.txt").write_text("\n".join(truth) + "\n")
    with tarfile.open(root / "ILSVRC2012_devkit_t12.tar.gz", "w:gz") as tar:
        tar.add(kit.parent, kit.parent.name)
    names = {
        "train": "ILSVRC2012_img_train.tar",
        "val": "ILSVRC2012_img_val.tar",
        "devkit": "ILSVRC2012_devkit_t12.tar.gz",
    }
    return {part: (name, md5(root / name)) for part, name in names.items()}


def md5(path: Path) -> str:
    """As torchvision checks its files."""
    return hashlib.md5(path.read_bytes(), usedforsecurity=False).hexdigest()
