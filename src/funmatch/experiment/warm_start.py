"""How a run begins: from its own checkpoint, anew, or with the last state of another run."""

import os
from pathlib import Path

from funmatch.config import identity
from funmatch.config.errors import UserError
from funmatch.experiment.experiment import Experiment
from funmatch.runs import checkpoint_files
from funmatch.runs.directory import Run
from funmatch.runtime import atomic_files

_MAY_DIFFER = ("origin", "steps", "schedule")


def should_restart(experiment: Experiment) -> bool:
    """Whether `resume=never` discards the run; once per SLURM job."""
    again = os.environ.get("SLURM_RESTART_COUNT", "0") != "0"
    return experiment.resume == "never" and not (again and experiment.run.begun_by == _job())


def reset(run: Run) -> None:
    """Forgets what an earlier process did, and remembers in which job that was."""
    run.clear()
    if job := _job():
        atomic_files.write(run.begun, job)


def _job() -> str:
    return os.environ.get("SLURM_JOB_ID", "")


def warm_start_source(experiment: Experiment) -> tuple[Run, Path] | None:
    """The run whose state a new one takes over, and the checkpoint; None for most runs.

    Raises:
        UserError: it was another experiment, has gone further since, or is as long already.
    """
    if experiment.origin is None:
        return None
    key, total = f"resume={experiment.resume}", experiment.steps
    state = checkpoint_files.resolve_checkpoint(Path(experiment.resume))
    run, step = Run(state.parents[1]), checkpoint_files.step(state)
    if checkpoint_files.digest(state) != experiment.origin or not checkpoint_files.is_intact(state):
        raise UserError(f"{key}: {state.name} has changed or is damaged; name another")
    before, now = (
        {name: value for name, value in settings.items() if name not in _MAY_DIFFER}
        for settings in (
            identity.identity(identity.read(run.directory / "config.yaml")),
            experiment.identity,
        )
    )
    if difference := identity.differing_key(before, now):
        raise UserError(
            f"{key}: was made with another configuration: {difference}; only epochs or "
            "steps and the schedule may differ"
        )
    if step >= total:
        raise UserError(
            f"{key}: is at step {step} already and this run has {total}; give more epochs"
        )
    return run, state
