"""The commands that make runs: `train` and `finetune`."""

from contextlib import suppress
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig

from funmatch.analysis import tables
from funmatch.analysis.seed_groups import group_runs
from funmatch.cli import app, config_tree
from funmatch.config import validation
from funmatch.config.compose import compose_context
from funmatch.config.errors import RunIsBusyError, UserError
from funmatch.experiment import launcher, warm_start
from funmatch.experiment.build import build
from funmatch.experiment.experiment import Experiment
from funmatch.experiment.run_lifecycle import format_result, run_to_completion
from funmatch.runs.directory import Run
from funmatch.runtime import atomic_files, distributed
from funmatch.tasks.description import TaskDescription


def train() -> None:
    """Distils a student, once or for each job of a sweep."""
    _launch("train")


def finetune() -> None:
    """Trains a network on labels: makes teachers and label-only baselines."""
    _launch("finetune")


def _launch(config_name: str) -> None:
    """Makes one run, or one for each job of a sweep, and prints the table over them."""
    directories: dict[Path, None] = {}  # in order, each once
    deferred: list[tuple[DictConfig, Experiment]] = []  # runs that other processes work on
    shown = False

    def task(cfg: DictConfig) -> float | None:
        nonlocal shown
        validation.check(cfg)  # again: a search draws values that were not checked when it began
        experiment = build(cfg)
        run = experiment.run
        if cfg.dry_run:
            from funmatch.experiment import dry_run  # imports torch

            print(f"{run.directory} (dry run: nothing is written)", flush=True)
            dry_run.dry_run(experiment)
            return None
        if distributed.rank() > 0:  # rank 0 holds the run, reports and sums up
            if not _is_finished(experiment):
                launcher.train(experiment)
            return None
        directories[run.directory.parent] = None
        jobs = app.ValidateJobs.jobs
        number = f"[{HydraConfig.get().job.num + 1}/{jobs}] " if jobs > 1 else ""
        finished = _is_finished(experiment)
        if cfg.get("save_as") is not None:
            _refuse_to_replace(_saved_as(cfg), run)
        title = f"{number}{run.directory}"
        if finished or shown:
            print(title, flush=True)
        else:
            config_tree.print_config_tree(cfg, title, HydraConfig.get().runtime.choices)
            shown = True
        try:
            row = run_to_completion(experiment, launcher.train)
        except RunIsBusyError:
            if cfg.if_running == "fail":
                raise
            print("  another process works on this run; its result is awaited at the end")
            deferred.append((cfg, experiment))
            return None
        finally:
            with suppress(OSError):  # of a full disk for instance: the run comes first
                if not finished:
                    directory = run.directory.parent
                    tables.write(directory, group_runs([directory]))
        _conclude(cfg, run, row, " (finished before; resume=never repeats it)" if finished else "")
        described = TaskDescription.of(row)
        figures = {each.metric: each for each in (described.score, described.agreement)}
        # A search maximises, see conf/sweep/optuna.yaml.
        return (
            figures[row["selected_by"]].rank(row["selected_score"]) if row["selected_by"] else 0.0
        )

    def finish() -> None:
        with compose_context():
            for cfg, experiment in deferred:
                print(experiment.run.directory, flush=True)
                row = run_to_completion(experiment, launcher.train, wait=True)
                _conclude(cfg, experiment.run, row, "")
        for directory in directories:
            tables.write_and_print(directory)

    app.launch(config_name, task, finish)


def _conclude(cfg: DictConfig, run: Run, row: dict[str, Any], note: str) -> None:
    """Prints the result of a run, and saves its network under a name if that is configured."""
    print(f"  {format_result(row)}{note}")
    if cfg.get("save_as") is not None:
        print(f"  teacher=saved teacher.name={cfg.save_as}  ({_save(cfg, run)})")


def _is_finished(experiment: Experiment) -> bool:
    return experiment.run.completed and not warm_start.should_restart(experiment)


def _saved_as(cfg: DictConfig) -> Path:
    """Directory `logs/teachers/<save_as>`."""
    return Path(cfg.paths.logs) / "teachers" / cfg.save_as


def _refuse_to_replace(directory: Path, run: Run) -> None:
    """Refuses, before training, a name that another network has."""
    other = directory / run.student.name
    if other.exists() and not (run.completed and other.read_bytes() == run.student.read_bytes()):
        raise UserError(
            f"save_as={directory.name}: {directory} holds another network; choose a name, or "
            "remove it"
        )


def _save(cfg: DictConfig, run: Run) -> Path:
    """Copies the student and model.json to `logs/teachers/<save_as>`."""
    directory = _saved_as(cfg)
    for path in (run.student, run.model):
        atomic_files.write(directory / path.name, path.read_bytes())
    return directory
