"""How a run begins: with what it has, anew, or with the last state of another run."""

import os
from pathlib import Path

from omegaconf import DictConfig

from funmatch.config import identity, schema
from funmatch.config.errors import UserError
from funmatch.runs import checkpoint_files
from funmatch.runs.directory import Run
from funmatch.runtime import atomic_files

_MAY_DIFFER = ("origin", "steps", "schedule")


def should_restart(cfg: DictConfig, run: Run) -> bool:
    """Whether to forget what an earlier session did; only once in a job that SLURM requeues."""
    again = os.environ.get("SLURM_RESTART_COUNT", "0") != "0"
    return bool(cfg.resume == "never") and not (again and run.begun_by == _job())


def reset(run: Run) -> None:
    """Forgets what an earlier session did, and remembers in which job that was."""
    run.clear()
    if job := _job():
        atomic_files.write(run.begun, job)


def _job() -> str:
    return os.environ.get("SLURM_JOB_ID", "")


def warm_start_source(cfg: DictConfig) -> tuple[Run, Path] | None:
    """The run whose state a new one takes over, and the checkpoint; None for most runs.

    Raises:
        UserError: it was another experiment, has gone further since, or is as long already.
    """
    if cfg.origin is None:
        return None
    state = checkpoint_files.at(Path(cfg.resume))
    run, step, total = Run(state.parents[1]), checkpoint_files.step(state), schema.total_steps(cfg)
    if checkpoint_files.digest(state) != cfg.origin or not checkpoint_files.is_intact(state):
        raise UserError(
            f"resume={cfg.resume}: {state.name} has changed or is damaged; name another"
        )
    there, here = (
        {key: value for key, value in identity.identity(each).items() if key not in _MAY_DIFFER}
        for each in (identity.read(run.directory / "config.yaml"), cfg)
    )
    if found := identity.differing_key(there, here):
        raise UserError(
            f"resume={cfg.resume}: was made with another configuration: {found}; only epochs or "
            "steps and the schedule may differ"
        )
    if step >= total:
        raise UserError(
            f"resume={cfg.resume}: is at step {step} already and this run has {total}; "
            "give more epochs"
        )
    return run, state
