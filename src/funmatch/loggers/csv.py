"""Metrics as one CSV file that a resumed run goes on writing."""

import csv
import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lightning.pytorch.loggers import Logger

from funmatch import files


class CsvLogger(Logger):
    """One row per step that was logged; the columns grow as metrics appear.

    Lightning's own CSV logger deletes the rows of an earlier session. This one keeps those up to
    the step from which the run goes on, so that every step stands there once.

    Args:
        path: of the file.
        step: optimiser steps already done; rows of later steps are cut off.
    """

    name = "csv"
    version = ""

    def __init__(self, path: Path, *, step: int = 0) -> None:
        super().__init__()
        self._path = path
        self._columns: list[str] = ["step"]
        rows: list[dict[str, str]] = []
        if step and path.exists():
            with path.open(newline="") as file:
                reader = csv.DictReader(file)
                rows = [row for row in reader if int(row["step"]) <= step]
                self._columns = list(reader.fieldnames or self._columns)
        self._rewrite(rows)

    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        row = {name: value for name, value in metrics.items() if name != "epoch"}
        if not row:
            return
        new = [name for name in row if name not in self._columns]
        if new:
            with self._path.open(newline="") as file:
                rows = list(csv.DictReader(file))
            self._columns += new
            self._rewrite(rows)
        with self._path.open("a", newline="") as file:
            csv.DictWriter(file, self._columns).writerow({"step": step, **row})

    def log_hyperparams(self, params: Any, *args: Any, **kwargs: Any) -> None:
        """The configuration has a file of its own."""

    def _rewrite(self, rows: list[dict[str, str]]) -> None:
        text = io.StringIO(newline="")
        writer = csv.DictWriter(text, self._columns)
        writer.writeheader()
        writer.writerows(rows)
        files.write(self._path, text.getvalue())
