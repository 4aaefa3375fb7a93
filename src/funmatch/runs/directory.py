"""Run directory: paths of its files, its summary and its lock."""

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from filelock import FileLock

from funmatch.runs.checkpoint_files import Checkpoints
from funmatch.runtime import atomic_files
from funmatch.tasks.classification.description import DESCRIPTION as CLASSIFICATION
from funmatch.tasks.description import TaskDescription, columns


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
        self.mlflow_id = directory / "mlflow-run-id.txt"
        self.views = directory / "views.png"
        self.predictions = directory / "predictions.csv"
        self.begun = directory / "slurm-job.txt"

    def lock(self, *, wait: bool) -> FileLock:
        """The lock of the run, which one process holds while it works on the run.

        Raises:
            filelock.Timeout: on entering, if another process holds the lock and `wait` is false.
        """
        self._lock = atomic_files.lock(self.directory / "run.lock", wait=wait)
        return self._lock

    @property
    def descriptor(self) -> int:
        """File descriptor of the held lock; a process that inherits it holds the lock too."""
        return atomic_files.lock_descriptor(self._lock)

    @property
    def result(self) -> dict[str, Any]:
        """The content of summary.json; empty if the file is missing or damaged."""
        try:
            return read_summary(self.summary)
        except (OSError, ValueError, TypeError):
            return {}

    @property
    def completed(self) -> bool:
        return self.result.get("status") == "completed"

    @property
    def begun_by(self) -> str:
        """ID of the SLURM job that has restarted the run; empty if none has."""
        return self.begun.read_text() if self.begun.exists() else ""

    def write_summary(self, values: Mapping[str, Any]) -> None:
        """Writes summary.json: the columns of the table, null where not given, and all else.

        Args:
            values: among them "task", the description of the run's task.
        """
        row = {name: values.get(name) for name in columns(TaskDescription.of(values))}
        extra = {key: value for key, value in values.items() if key not in row}
        content = {**row, "run": self.directory.name, **extra}
        atomic_files.write(self.summary, json.dumps(content, indent=2, allow_nan=False) + "\n")

    def clear(self) -> None:
        """Removes checkpoints, results, exports and tracker IDs: the run starts from scratch."""
        self.checkpoints.clear()
        results = (self.student, self.model, self.metrics, self.summary, self.tracker_id)
        for path in (*results, self.mlflow_id, self.views, self.predictions):
            path.unlink(missing_ok=True)
        for name in ("export", "tensorboard"):  # of the student that was, and its history
            shutil.rmtree(self.directory / name, ignore_errors=True)

    def sweep_up(self) -> None:
        """Removes temporary files of a killed process; call it only with the lock held."""
        for path in self.directory.glob("**/.*.tmp"):
            if path.is_file():  # an export removes its temporary folder itself
                path.unlink()


def read_summary(path: Path) -> dict[str, Any]:
    """The content of a summary.json; one without a task, of an older version, is classification.

    Raises:
        OSError, ValueError, TypeError: the file is missing or damaged.
    """
    content = dict(json.loads(path.read_text()))
    return {**content, "task": content.get("task") or CLASSIFICATION.as_json()}
