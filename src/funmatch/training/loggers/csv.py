"""Metrics in one CSV file, which a resumed run continues."""

import csv
import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lightning.pytorch.loggers import Logger

from funmatch.runtime import atomic_files


class CsvLogger(Logger):
    """One row per step; the columns grow as metrics appear.

    Lightning's own CSV logger deletes the rows of an earlier session. This one keeps those up to
    the step from which the run resumes, so that every step occurs once.

    Args:
        path: the CSV file.
        step: optimiser steps already done; rows of later steps are cut off.
    """

    name = "csv"
    version = ""

    def __init__(self, path: Path, *, step: int = 0) -> None:
        super().__init__()
        self._path = path
        self._columns: list[str] = ["step"]
        rows: list[dict[str, Any]] = []
        if step and path.exists():
            rows = [row for row in self._read() if int(row["step"]) <= step]
            self._columns = list(rows[0]) if rows else self._columns
        self._rewrite(rows)

    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        row: dict[str, Any] = {"step": step, **metrics}
        same = int(self._last.get("step", -1)) == step  # trained and validated at one step
        if new := [name for name in row if name not in self._columns]:
            self._columns += new
            rows = self._read()
            self._rewrite([*rows[:-1], {**self._last, **row}] if same else [*rows, row])
        else:
            self._write({**self._last, **row} if same else row, again=same)

    def log_hyperparams(self, params: Any, *args: Any, **kwargs: Any) -> None:
        """The configuration has a file of its own."""

    def _read(self) -> list[dict[str, Any]]:
        text = self._path.read_text()
        whole, _, _ = text.rpartition(
            "\n"
        )  # a last line without an end was cut off while it was written
        rows = csv.DictReader(line for line in whole.splitlines() if "\0" not in line)
        return [row for row in rows if (row["step"] or "").isdigit()]

    def _rewrite(self, rows: list[dict[str, Any]]) -> None:
        text = io.StringIO(newline="")
        writer = csv.DictWriter(text, self._columns)
        writer.writeheader()
        writer.writerows(rows[:-1])
        self._begin = len(text.getvalue().encode())  # of the last row
        writer.writerows(rows[-1:])
        atomic_files.write(self._path, text.getvalue())
        self._last = rows[-1] if rows else {}

    def _write(self, row: dict[str, Any], *, again: bool) -> None:
        """Writes a row, over the last one (`again`) or after it."""
        text = io.StringIO(newline="")
        csv.DictWriter(text, self._columns).writerow(row)
        with self._path.open("r+b") as file:
            self._begin = file.seek(self._begin) if again else file.seek(0, io.SEEK_END)
            file.write(text.getvalue().encode())
            file.truncate()
        self._last = row
