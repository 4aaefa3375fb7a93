"""A user's folder of images: with class folders, with a csv file of labels, or without labels."""

from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path

import numpy as np

from funmatch.data.datasets import label_csv, stratified_split
from funmatch.data.file_list import (
    DataNotFoundError,
    DatasetFiles,
    FileList,
    digest,
    folders_in,
    images_below,
    labelled,
)

_SPLITS = ("train", "val", "test")
_SHARES = "give three fractions, for train, val and test, that add up to 1"
_ARCHIVES = (".tar", ".tgz", ".gz", ".bz2", ".xz", ".zst", ".zip")


def folder(
    root: Path,
    labels: str = "auto",
    label_column: str | None = None,
    split: Sequence[float] | None = None,
    classes: int | None = None,
) -> DatasetFiles:
    """File lists of the images below a folder.

    Args:
        root: folder with train/, val/ and test/, or without. A missing val is a tenth of train, by
            the seeded stratified split; a missing test is val.
        labels: "auto": sub-folders are classes, without sub-folders there are no labels; "none":
            no labels, whatever the folders; or the path of a csv file with a header, relative to
            root or absolute: its first column names images anywhere below root, and images that it
            does not name are left out.
        label_column: column of the csv file with class numbers from 0; by default the column
            "label", else the first whose name contains "label".
        split: fractions of train, val and test if there are no such folders. By default 0.8, 0.1
            and 0.1 with labels; 0.9, 0.1 and 0 without. 0, 0 and 1 is for evaluation only.
        classes: number of classes without class folders; by default the largest label + 1.

    Raises:
        DataNotFoundError: the folder contains no images, or has none of these layouts.
        ValueError: `split` is not three fractions that add up to 1.
    """
    if labels == "auto":
        every, names, has_labels = _by_folders(root)
    elif labels == "none":
        every, names, has_labels = _plain(root, _images(root)), (), False
    else:
        every, names, has_labels = (
            label_csv.labels(root, _images(root), labels, label_column, classes),
            (),
            True,
        )
    if labels == "auto" and has_labels and classes not in (None, len(names)):
        raise DataNotFoundError(f"classes={classes}: root={root} has {len(names)} class folders")
    if has_labels and not names:
        assert every.labels is not None
        names = tuple(str(number) for number in range(classes or int(every.labels.max()) + 1))
    if not has_labels and classes is not None:
        names = tuple(str(number) for number in range(classes))
    return DatasetFiles(names, *_parts(every, split))


def facts(
    root: str,
    labels: str = "auto",
    label_column: str | None = None,
    split: Sequence[float] | None = None,
) -> dict[str, int | str | None]:
    """Facts of a folder that a configuration needs, without importing torch.

    Returns:
        classes: number of classes, None without labels; train_size: number of training images;
        digest: 8 hex digits of a digest of names, file sizes and labels.
    """
    try:
        shares = None if split is None else tuple(float(share) for share in split)
    except (TypeError, ValueError):
        raise ValueError(f"split={split}: {_SHARES}") from None
    return dict(_facts(Path(root).resolve(), str(root), labels, label_column, shares))


@lru_cache
def _facts(
    _resolved: Path, root: str, labels: str, column: str | None, split: tuple[float, ...] | None
) -> dict[str, int | str | None]:
    files = folder(Path(root), labels, column, split)
    parts = [digest(p.root, p.names, p.labels) for p in (files.train, files.val, files.test)]
    return {
        "classes": len(files.classes) or None,
        "train_size": len(files.train),
        "digest": stratified_split.class_digest(parts),
    }


def _images(root: Path) -> list[str]:
    """Names of all images below a folder, which must exist and contain at least one."""
    if root.is_file():
        if root.suffix in _ARCHIVES:
            tool = "unzip" if root.suffix == ".zip" else "tar xf"
            raise DataNotFoundError(f"root={root}: is an archive; extract it first: {tool} {root}")
        raise DataNotFoundError(f"root={root}: is a file; give the folder with the images")
    if not root.is_dir():
        raise DataNotFoundError(f"root={root}: no such folder; give the folder with the images")
    names = images_below(root)
    if not names:
        raise DataNotFoundError(
            f"root={root}: contains no images (*.jpg, *.png, ...); give another root"
        )
    return names


def _plain(root: Path, names: Sequence[str]) -> FileList:
    return FileList(root, tuple(names), None)


def _by_folders(root: Path) -> tuple[FileList, tuple[str, ...], bool]:
    """Images in class folders or without classes, with or without train/, val/ and test/ above.

    Returns the images, the class names, and True if there are labels.
    """
    names = _images(root)
    tops = [f"{part}/" for part in _SPLITS if (root / part).is_dir()]
    if tops and "train/" not in tops:
        raise DataNotFoundError(
            f"root={root}: contains {tops[0]} but no train/; to evaluate on it alone give "
            f"root={root / tops[0]} and split=[0,0,1]"
        )
    beside = [name for name in names if not name.startswith(tuple(tops))]
    if tops and beside:
        raise DataNotFoundError(
            f"root={root}: {beside[0].partition('/')[0]} beside train/ is neither val/ nor test/; "
            "rename it or move it away"
        )
    tops = tops or [""]
    below = {top: [n.removeprefix(top) for n in names if n.startswith(top)] for top in tops}
    classes_by_top = {top: _classes(root, top, below[top]) for top in tops}
    if not any(classes_by_top.values()):
        return _plain(root, [top + name for top in tops for name in below[top]]), (), False
    if not all(classes_by_top.values()):
        flat = next(top for top, classes in classes_by_top.items() if not classes)
        raise DataNotFoundError(f"root={root}: {flat} has no class folders, others have; {_NONE}")
    classes = classes_by_top[tops[0]]
    for top, names_in_top in classes_by_top.items():
        if extra := sorted(set(names_in_top) - set(classes)):
            raise DataNotFoundError(
                f"root={root}: {top}{extra[0]} is a class that train does not have; "
                "remove it, or give train some of its images"
            )
    if len(classes) == 1:
        raise DataNotFoundError(
            f"root={root}: {tops[0]}{classes[0]} is the only class folder; {_NONE}, "
            "or give a csv file of labels with labels=FILE.csv"
        )
    numbers = {name: number for number, name in enumerate(classes)}
    pairs = [(top + n, numbers[n.split("/")[0]]) for top in tops for n in below[top]]
    return labelled(root, pairs), tuple(classes), True


_NONE = "use all images without labels with labels=none"


def _classes(root: Path, top: str, names: Sequence[str]) -> list[str]:
    """Class folders of a split; empty if its images are not in sub-folders."""
    folders = folders_in(root / top)
    beside = [name for name in names if "/" not in name]
    if folders and beside:
        raise DataNotFoundError(
            f"root={root}: the image {top}{beside[0]} is beside the folder {top}{folders[0]}; "
            f"{_NONE}"
        )
    if empty := sorted(set(folders) - {name.split("/")[0] for name in names}):
        raise DataNotFoundError(
            f"root={root}: {top}{empty[0]} contains no images; add some or remove it"
        )
    if not names:
        raise DataNotFoundError(f"root={root}: {top} contains no images; add some or remove it")
    return folders


def _parts(every: FileList, split: Sequence[float] | None) -> tuple[FileList, FileList, FileList]:
    """File lists of train, val and test: from folders of these names, else by fractions."""
    tops = np.array([name.split("/")[0] if "/" in name else "" for name in every.names])
    if (tops == "train").any():
        if split is not None:
            raise ValueError(
                f"split={list(split)}: the folder train defines the split already; give null"
            )
        train, val, test = (every.take(np.flatnonzero(tops == part)) for part in _SPLITS)
        if not len(val):
            train, val = _split(train, 0.1)
        return train, val, test if len(test) else val
    if split is None:
        split = (0.9, 0.1, 0.0) if every.labels is None else (0.8, 0.1, 0.1)
    if len(split) != 3 or min(split) < 0 or abs(sum(split) - 1) > 1e-6:
        raise ValueError(f"split={list(split)}: {_SHARES}")
    if split[0] and not split[1]:
        raise ValueError(
            f"split={list(split)}: val must not be empty, it selects the best checkpoint"
        )
    if not split[0]:
        val, test = _split(every, split[2]) if split[1] else (every.take(_NOTHING), every)
        return every.take(_NOTHING), val, test
    train, val, test = _split(every, *split[1:])
    return train, val, test if split[2] else val


_NOTHING = np.zeros(0, dtype=np.int64)


def _split(images: FileList, *shares: float) -> list[FileList]:
    if len(images) <= len(shares):
        raise DataNotFoundError(f"root={images.root}: {len(images)} images are too few to split")
    return stratified_split.split(images, *shares, least=1)
