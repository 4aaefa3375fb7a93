"""The life of one run: locked, trained or skipped, summarised."""

import json
import logging
import platform
import shlex
import sys
from contextlib import suppress
from importlib.metadata import version
from typing import Any

from filelock import Timeout
from omegaconf import OmegaConf

from funmatch import __version__
from funmatch.config import identity
from funmatch.config.errors import RunIsBusyError, UserError
from funmatch.experiment import warm_start
from funmatch.experiment.experiment import Experiment, Train
from funmatch.runs.directory import Run
from funmatch.runtime import atomic_files, log
from funmatch.tasks.description import TaskDescription

_log = logging.getLogger(__name__)


def format_result(row: dict[str, Any]) -> str:
    """Formats the metrics of a run as one line."""
    task = TaskDescription.of(row)
    shown = [name for name in task.columns if name in task.table.values()]
    figures = [f"{name} {row[name]:.4f}" for name in shown if row[name] is not None]
    return f"{', '.join(figures)} in {row['wall_seconds']:.0f} s"


def run_to_completion(
    experiment: Experiment, train: Train, *, wait: bool = False
) -> dict[str, Any]:
    """Brings a run to its end, from wherever an earlier process left it.

    Args:
        experiment: the run.
        train: trains from the run's checkpoint, if there is one, and returns its figures.
        wait: for another process that works on the run; else it is refused.

    Returns:
        The run's summary; that of the earlier process if the run was complete already.

    Raises:
        RunIsBusyError: another process works on the run.
        UserError: the directory holds another configuration.
    """
    run = experiment.run
    try:
        with run.lock(wait=wait):
            return _run_to_completion(experiment, train)
    except Timeout:
        raise RunIsBusyError(
            f"{run.directory}: another process works on this run; wait for it, change name, or "
            "give if_running=later"
        ) from None


def _run_to_completion(experiment: Experiment, train: Train) -> dict[str, Any]:
    run = experiment.run
    run.sweep_up()
    _write_or_verify_config(experiment)
    if warm_start.should_restart(experiment):
        warm_start.reset(run)
    if run.completed:
        return run.result
    facts = {
        "recipe": experiment.recipe_name,
        "seed": experiment.seed,
        "epochs": round(experiment.epochs, 3),
        "steps": experiment.steps,
        "settings": experiment.identity,
        "task": _task(experiment),
    }
    run.write_summary({**facts, "status": "running"})
    try:
        with log.to_file(run.directory):
            _log_beginning(run, experiment.steps)
            figures = train(experiment)
            _log.info("measured: %s", json.dumps(figures), extra=log.FILE_ONLY)
    except Exception as error:
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        with suppress(OSError):
            run.write_summary({**facts, "status": "failed", "error": reason})
        raise
    run.write_summary({**facts, **figures, "status": "completed"})
    return run.result


def _task(experiment: Experiment) -> dict[str, Any]:
    from funmatch.experiment import datasets  # imports torch

    return datasets.build_task(experiment.data).description.as_json()


def _log_beginning(run: Run, steps: int) -> None:
    versions = ", ".join(f"{name} {version(name)}" for name in ("torch", "lightning"))
    system = f"Python {platform.python_version()} on {platform.platform()}"
    facts = f"funmatch {__version__}, {versions}, {system}"
    _log.info("command: %s", shlex.join(sys.argv), extra=log.FILE_ONLY)
    _log.info("%s", facts, extra=log.FILE_ONLY)
    _log.info("%s: %d steps", run.directory.name, steps, extra=log.FILE_ONLY)


def _write_or_verify_config(experiment: Experiment) -> None:
    """Writes the configuration, or compares it with the one that an earlier process wrote."""
    path = experiment.run.directory / "config.yaml"
    if path.exists():
        written = identity.identity(identity.read(path))
        if difference := identity.differing_key(written, experiment.identity):
            raise UserError(
                f"{path.parent}: holds a run with another configuration: {difference}; "
                "give another name or remove the directory"
            )
    atomic_files.write(path, OmegaConf.to_yaml(dict(experiment.config)))
