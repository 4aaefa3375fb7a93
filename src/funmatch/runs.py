"""A run and its directory: what it leaves, whether it is finished, who works on it."""

import csv
import io
import json
import os
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from filelock import FileLock
from omegaconf import OmegaConf

from funmatch import files
from funmatch.checkpoints import Checkpoints

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
        self.checkpoints = Checkpoints(directory / "checkpoints")
        self.student = directory / "student.safetensors"
        self.model = directory / "model.json"
        self.metrics = directory / "metrics.csv"
        self.summary = directory / "summary.json"
        self.tracker_id = directory / "tracker-id.txt"
        self.views = directory / "views.png"
        self.answers = directory / "answers.csv"
        self.begun = directory / "slurm-job.txt"

    def lock(self, *, wait: bool) -> FileLock:
        """Held while a process works on the run.

        Raises:
            filelock.Timeout: on entering, if another process holds it and `wait` is false.
        """
        self._lock = files.lock(self.directory / "run.lock", wait=wait)
        return self._lock

    @property
    def descriptor(self) -> int:
        """Of the lock that is held: a process that it is passed on to holds the lock too."""
        return files.descriptor(self._lock)

    @property
    def result(self) -> dict[str, Any]:
        """The summary, with the columns of a sweep's table; empty if there is none."""
        try:
            return dict(json.loads(self.summary.read_text()))
        except (OSError, ValueError):
            return {}

    @property
    def completed(self) -> bool:
        return self.result.get("status") == "completed"

    @property
    def begun_by(self) -> str:
        """The SLURM job that has begun the run anew; empty if none did."""
        return self.begun.read_text() if self.begun.exists() else ""

    def write_summary(self, values: Mapping[str, Any]) -> None:
        """Writes summary.json: the columns of the table, empty where not given, and the rest."""
        row = {column: values.get(column) for column in COLUMNS}
        extra = {key: value for key, value in values.items() if key not in row}
        content = {**row, "run": self.directory.name, **extra}
        files.write(self.summary, json.dumps(content, indent=2, allow_nan=False) + "\n")

    def clear(self) -> None:
        """Forgets what an earlier session did, so that the run starts anew."""
        self.checkpoints.clear()
        left = (self.student, self.model, self.metrics, self.summary, self.tracker_id)
        for path in (*left, self.views, self.answers):
            path.unlink(missing_ok=True)

    def sweep_up(self) -> None:
        """Removes what a killed session was just writing; for the holder of the lock."""
        for path in self.directory.glob("**/.*.tmp"):
            if path.is_file():  # a folder is an export's, which clears up itself
                path.unlink()


def rank() -> int:
    """Of this process among those that train one run together; known before torch is imported."""
    names = ("RANK", "SLURM_PROCID") if by_srun() else ("RANK",)
    return int(next((os.environ[name] for name in names if name in os.environ), 0))


def local_rank() -> int:
    """Likewise, among those on this machine."""
    return int(os.environ.get("SLURM_LOCALID" if by_srun() else "LOCAL_RANK", 0))


def world_size() -> int:
    """Of how many such processes this is one."""
    return int(os.environ.get("SLURM_NTASKS" if by_srun() else "WORLD_SIZE", 1))


def is_rank() -> bool:
    """Whether this process is one of several that somebody has started to train together."""
    return "RANK" in os.environ or by_srun()


def by_srun() -> bool:
    """Whether srun has started several tasks, of which this process is one."""
    return int(os.environ.get("SLURM_STEP_NUM_TASKS", 1)) > 1


def collect(directories: Iterable[Path]) -> list[dict[str, Any]]:
    """The summaries of all runs in some directories, or in those below, with their `directory`."""
    patterns = ("summary.json", "*/summary.json", "*/*/summary.json")
    paths = {path for root in directories for pattern in patterns for path in root.glob(pattern)}
    rows = []
    for path in sorted(paths, key=lambda path: path.stat().st_mtime):
        try:
            row = json.loads(path.read_text())
            row["settings"], row["seed"], row["status"]
        except (ValueError, KeyError, TypeError, OSError) as error:
            print(f"skipped {path}: damaged ({type(error).__name__})", file=sys.stderr)
        else:
            rows.append({**row, "directory": path.parent})
    return rows


def command(row: Mapping[str, Any]) -> list[str] | None:
    """What was typed for a run: train or finetune, and its overrides; None if that is not there.

    Args:
        row: its summary, with its `directory`.
    """
    folder = row["directory"] / ".hydra"
    if not all((folder / name).is_file() for name in ("overrides.yaml", "hydra.yaml")):
        return None
    typed: Any = OmegaConf.to_container(OmegaConf.load(folder / "overrides.yaml"), resolve=False)
    sources = OmegaConf.load(folder / "hydra.yaml").hydra.runtime.config_sources
    own = [f"--config-dir={each.path}" for each in sources if each.provider == "command-line"]
    return ["finetune" if row["recipe"] == "labels" else "train", *own, *map(str, typed)]


def table(rows: Iterable[Mapping[str, Any]]) -> str:
    """Summaries as CSV text; what a run has not measured is an empty cell."""
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, COLUMNS, extrasaction="ignore")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()
