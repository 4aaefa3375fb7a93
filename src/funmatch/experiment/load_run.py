"""A run that was left, opened again: its directory and its configuration."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from funmatch.analysis import summaries
from funmatch.config import identity
from funmatch.config.errors import UserError
from funmatch.runs.directory import Run
from funmatch.tasks.description import TaskDescription


def open_run(
    place: str, accelerator: str, data: Mapping[str, Any] | None = None
) -> tuple[Run, DictConfig]:
    """A run with a student, and how it was made.

    Args:
        place: its directory, or one of several runs, of which the best on val is taken.
        accelerator: to compute on now.
        data: keys of its data that are other now: it may have moved, or gained a test set.

    Raises:
        UserError: there is no such run, or none with a student.
    """
    run = _best(Path(place))
    config = run.directory / "config.yaml"
    if not config.is_file():
        raise UserError(f"run={place}: holds no config.yaml; give the directory of a run")
    if not run.student.is_file():
        raise UserError(f"run={place}: has no student.safetensors yet; train it further")
    cfg = identity.read(config)
    cfg.trainer.accelerator, cfg.trainer.devices, cfg.trainer.num_nodes = accelerator, 1, 1
    for key, value in (data or {}).items():
        places = [part for part in (cfg.data, cfg.data.splits) if key in part]
        if not places:
            raise UserError(f"data.{key}={value}: data={cfg.data.name} has no such key")
        for part in places:
            part[key] = value
    cfg.paths.logs = str(run.directory.resolve().parents[1])  # wherever this command is run
    return run, cfg


def run_directories(given: str | Sequence[str]) -> list[Path]:
    """The directories that `runs=` names.

    Raises:
        UserError: one is none.
    """
    found = [Path(each) for each in ([given] if isinstance(given, str) else given)]
    for folder in found:
        if not folder.is_dir():
            raise UserError(f"runs={folder}: no such directory; give one that holds runs")
    return found


def _best(place: Path) -> Run:
    """The run itself, or the best of several."""
    if (place / "config.yaml").is_file() or not place.is_dir():
        return Run(place)
    done = [row for row in summaries.collect([place]) if row["status"] == "completed"]
    if not done:
        raise UserError(f"run={place}: no finished run there; give the directory of one")
    tasks = [TaskDescription.of(row) for row in done]
    if len({task.name for task in tasks}) > 1:
        raise UserError(f"run={place}: runs of several tasks there; give that of one")
    task, score = tasks[0].score, tasks[0].student_score("val")
    if len(done) > 1 and any(row[score] is None for row in done):
        raise UserError(
            f"run={place}: {len(done)} runs there, and no labels to choose by; give that of one"
        )
    best = max(done, key=lambda row: task.rank(row[score] or 0.0))
    if len(done) > 1:
        print(f"{best['directory']}: the best on val of {len(done)} runs ({best[score]:.4f})")
    return Run(best["directory"])
