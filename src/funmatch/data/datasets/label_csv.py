"""Labels of images from a csv file."""

import csv
from collections.abc import Sequence
from pathlib import Path

from funmatch.data.file_list import DataNotFoundError, FileList, labelled, reading


def labels(
    root: Path, names: Sequence[str], table: str, column: str | None, classes: int | None
) -> FileList:
    """File list of the images that a csv file names, with their labels.

    Args:
        root: folder of the images.
        names: names of all images below root.
        table: path of the csv file, relative to root or absolute.
        column: column with class numbers from 0; by default the column "label", else the first
            whose name contains "label".
        classes: number of classes; None if unknown.

    Raises:
        DataNotFoundError: the csv file is missing or damaged, names a missing image or names an
            image twice, or a label is too large.
    """
    key = f"labels={table}"
    with reading(root, table, "give a csv file with a header, in root or absolute", key) as path:
        with path.open(newline="", encoding="utf-8-sig") as file:
            rows = csv.DictReader(file, strict=True)
            header = list(rows.fieldnames or [])
            name = column or _label_column(header[1:])
            if name is None or name not in header:
                wanted = "whose name contains label" if column is None else f"called {column}"
                raise DataNotFoundError(f"{key}: no column {wanted}; name one with label_column=")
            given = [(row[header[0]], int(row[name])) for row in rows]
        if not given or min(number for _, number in given) < 0:
            raise ValueError("no rows, or a label below 0")
    largest = max(number for _, number in given)
    if classes is not None and largest >= classes:
        raise DataNotFoundError(
            f"{key}: label {largest} is too large for classes={classes}; set classes higher"
        )
    by_name: dict[str, list[str]] = {}
    for name in names:
        by_name.setdefault(name.rpartition("/")[2], []).append(name)
    every = set(names)
    pairs: list[tuple[str, int]] = []
    missing: list[str] = []
    for name, number in given:
        matches = [name] if name in every else by_name.get(name, [])
        if len(matches) > 1:
            raise DataNotFoundError(
                f"{key}: {name} is ambiguous: {matches[0]} or {matches[1]}; "
                "write names with their folder below root"
            )
        pairs += [(match, number) for match in matches]
        missing += [] if matches else [name]
    if missing:
        raise DataNotFoundError(
            f"{key}: {len(missing)} of its {len(given)} images are not below root={root}, "
            f"first {missing[0]}; add them, or give another root"
        )
    if len({match for match, _ in pairs}) < len(pairs):
        raise DataNotFoundError(f"{key}: names an image twice; keep one row for each image")
    return labelled(root, sorted(pairs))


def _label_column(names: Sequence[str]) -> str | None:
    return next((n for n in names if n == "label"), next((n for n in names if "label" in n), None))
