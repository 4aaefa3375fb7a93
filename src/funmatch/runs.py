"""A run and its directory: what it leaves, whether it is finished, who works on it."""

import csv
import io
import json
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from filelock import FileLock

from funmatch import files

COLUMNS = (
    "run",
    "recipe",
    "seed",
    "epochs",
    "steps",
    "student_val_top1",
    "student_test_top1",
    "teacher_test_top1",
    "agreement_top1",
    "agreement_top5",
    "kl_to_teacher",
    "images_per_second",
    "teacher_seconds",
    "student_seconds",
    "wall_seconds",
    "status",
)


class Run:
    """The directory of one run.

    Args:
        directory: `logs/<name>/<recipe>-s<seed>-<hash>`.
    """

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.checkpoint = directory / "checkpoints" / "last.ckpt"
        self.student = directory / "student.safetensors"
        self.model = directory / "model.json"
        self.metrics = directory / "metrics.csv"
        self.summary = directory / "summary.json"

    def lock(self, *, wait: bool) -> FileLock:
        """Held while a process works on the run.

        Raises:
            filelock.Timeout: on entering, if another process holds it and `wait` is false.
        """
        return files.lock(self.directory / "run.lock", wait=wait)

    @property
    def result(self) -> dict[str, Any]:
        """The summary, with the columns of a sweep's table; empty before the first one."""
        return json.loads(self.summary.read_text()) if self.summary.exists() else {}

    @property
    def completed(self) -> bool:
        return self.result.get("status") == "completed"

    def write_summary(self, values: Mapping[str, Any]) -> None:
        """Writes summary.json: the columns of the table, empty where not given, and the rest."""
        row = {column: values.get(column) for column in COLUMNS}
        extra = {key: value for key, value in values.items() if key not in row}
        content = {**row, "run": self.directory.name, **extra}
        files.write(self.summary, json.dumps(content, indent=2) + "\n")

    def clear(self) -> None:
        """Forgets what an earlier session did, so that the run starts anew."""
        for path in (self.checkpoint, self.student, self.model, self.metrics, self.summary):
            path.unlink(missing_ok=True)


def rank() -> int:
    """Of this process among those that train one run together; known before torch is imported."""
    ranks = (os.environ.get(name) for name in ("RANK", "LOCAL_RANK", "SLURM_PROCID"))
    return int(next((value for value in ranks if value), 0))


def collect(directories: Iterable[Path]) -> list[dict[str, Any]]:
    """The summaries of all runs in or below some directories."""
    paths = sorted({path for root in directories for path in root.rglob("summary.json")})
    return [json.loads(path.read_text()) for path in paths]


def table(rows: Iterable[Mapping[str, Any]]) -> str:
    """Summaries as CSV text; what a run has not measured is an empty cell."""
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, COLUMNS, extrasaction="ignore")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()
