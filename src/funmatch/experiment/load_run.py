"""Opens the directory of a run again."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from funmatch.analysis import summaries
from funmatch.config import identity, schema
from funmatch.config.errors import UserError
from funmatch.experiment.build import build
from funmatch.experiment.experiment import Experiment
from funmatch.runs.directory import Run
from funmatch.tasks.description import TaskDescription


def open_run(
    directory: str,
    *,
    accelerator: str,
    data: Mapping[str, Any] | None = None,
) -> Experiment:
    """The experiment of a run that has a student.

    Args:
        directory: of the run, or one of several runs, of which the best on val is taken.
        accelerator: to compute on now.
        data: keys of its data that are other now: it may have moved, or gained a test set.

    Raises:
        UserError: there is no such run, or none with a student.
    """
    run = _best(Path(directory))
    config = run.directory / "config.yaml"
    if not config.is_file():
        raise UserError(f"run={directory}: holds no config.yaml; give the directory of a run")
    if not run.student.is_file():
        raise UserError(f"run={directory}: has no student.safetensors yet; train it further")
    cfg = identity.read(config)
    cfg.trainer.accelerator, cfg.trainer.devices, cfg.trainer.num_nodes = accelerator, 1, 1
    for key, value in (data or {}).items():
        parts = [part for part in (cfg.data, cfg.data.splits) if key in part]
        if not parts:
            raise UserError(f"data.{key}={value}: data={cfg.data.name} has no such key")
        for part in parts:
            part[key] = value
    if cfg.data.classes != (classes := schema.student(cfg).classes):
        raise UserError(
            f"data={cfg.data.name}: has {cfg.data.classes} classes, the student of "
            f"run={run.directory} predicts {classes}; give the data that it was trained for"
        )
    cfg.paths.logs = str(run.directory.resolve().parents[1])  # wherever this command is run
    return replace(build(cfg), run=run)


def run_directories(runs: str | Sequence[str]) -> list[Path]:
    """The directories that `runs=` names.

    Raises:
        UserError: one of them does not exist.
    """
    directories = [Path(each) for each in ([runs] if isinstance(runs, str) else runs)]
    for folder in directories:
        if not folder.is_dir():
            raise UserError(f"runs={folder}: no such directory; give one that holds runs")
    return directories


def _best(directory: Path) -> Run:
    """The run itself, or the best of several."""
    if (directory / "config.yaml").is_file() or not directory.is_dir():
        return Run(directory)
    done = [row for row in summaries.collect([directory]) if row["status"] == "completed"]
    if not done:
        raise UserError(f"run={directory}: has no finished run; give the directory of one")
    tasks = [TaskDescription.of(row) for row in done]
    if len({task.name for task in tasks}) > 1:
        raise UserError(f"run={directory}: has runs of several tasks; give the directory of one")
    task, score = tasks[0].score, tasks[0].student_score("val")
    if len(done) > 1 and any(row[score] is None for row in done):
        raise UserError(
            f"run={directory}: has {len(done)} runs, and no labels to choose by; give one of them"
        )
    best = max(done, key=lambda row: task.rank(row[score] or 0.0))
    if len(done) > 1:
        print(f"{best['directory']}: the best on val of {len(done)} runs ({best[score]:.4f})")
    return Run(best["directory"])
