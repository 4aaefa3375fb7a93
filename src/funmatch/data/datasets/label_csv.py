"""A csv file that says which class each image is of."""

import csv
from collections.abc import Sequence
from pathlib import Path

from funmatch.data.file_list import DataNotFoundError, FileList, labelled, reading


def labels(
    root: Path, names: Sequence[str], table: str, column: str | None, classes: int | None
) -> FileList:
    """The images that a csv file names, with its labels.

    Args:
        root: of the images, and of the table unless that is absolute.
        names: of all images below root.
        table: path of the csv file.
        column: of the class numbers from 0; by default the one called label, else the first whose
            name contains "label".
        classes: their number, if it is known.

    Raises:
        MissingData: table and images do not fit together.
    """
    key = f"labels={table}"
    with reading(root, table, "give a csv file with a header, in root or absolute", key) as path:
        with path.open(newline="", encoding="utf-8-sig") as file:
            rows = csv.DictReader(file, strict=True)
            header = list(rows.fieldnames or [])
            found = column or _label_column(header[1:])
            if found is None or found not in header:
                wanted = "whose name contains label" if column is None else f"called {column}"
                raise DataNotFoundError(f"{key}: no column {wanted}; name one with label_column=")
            given = [(row[header[0]], int(row[found])) for row in rows]
        if not given or min(number for _, number in given) < 0:
            raise ValueError("no rows, or a label below 0")
    largest = max(number for _, number in given)
    if classes is not None and largest >= classes:
        raise DataNotFoundError(
            f"{key}: label {largest} is beyond classes={classes}; set classes higher"
        )
    by_name: dict[str, list[str]] = {}
    for name in names:
        by_name.setdefault(name.rpartition("/")[2], []).append(name)
    every = set(names)
    pairs: list[tuple[str, int]] = []
    missing: list[str] = []
    for name, number in given:
        places = [name] if name in every else by_name.get(name, [])
        if len(places) > 1:
            raise DataNotFoundError(
                f"{key}: {name} is ambiguous: {places[0]} or {places[1]}; "
                "write names with their folder below root"
            )
        pairs += [(place, number) for place in places]
        missing += [] if places else [name]
    if missing:
        raise DataNotFoundError(
            f"{key}: {len(missing)} of its {len(given)} images are not below root={root}, "
            f"first {missing[0]}; complete them, or give another root"
        )
    if len({place for place, _ in pairs}) < len(pairs):
        raise DataNotFoundError(f"{key}: names an image twice; keep one row for each")
    return labelled(root, sorted(pairs))


def _label_column(names: Sequence[str]) -> str | None:
    return next((n for n in names if n == "label"), next((n for n in names if "label" in n), None))
