"""The commands that make runs: `train` and `finetune`."""

from contextlib import suppress
from pathlib import Path

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig

from funmatch.analysis import tables
from funmatch.analysis.seed_groups import group_runs
from funmatch.cli import app, config_tree
from funmatch.config import identity, validation
from funmatch.config.errors import UserError
from funmatch.experiment import launcher, warm_start
from funmatch.experiment.run_lifecycle import format_result, run_to_completion
from funmatch.runs.directory import Run
from funmatch.runtime import atomic_files, distributed
from funmatch.tasks.description import TaskDescription


def train() -> None:
    """Distils a student, once or for each job of a sweep."""
    _launch("train", "distill")


def finetune() -> None:
    """Trains a network on labels: makes teachers and label-only baselines."""
    _launch("finetune", "supervise")


def _launch(config_name: str, method: launcher.Method) -> None:
    """Makes one run, or one for each job of a sweep, and prints the table over them."""
    directories: dict[Path, None] = {}  # in order, each once
    shown = False

    def task(cfg: DictConfig) -> float | None:
        nonlocal shown
        validation.check(cfg)  # again: a search draws values that the door has not seen
        run = Run(identity.run_directory(cfg))
        if cfg.dry_run:
            from funmatch.experiment import dry_run  # imports torch

            print(f"{run.directory} (dry run: nothing is written)", flush=True)
            dry_run.dry_run(cfg)
            return None
        if distributed.rank() > 0:  # rank 0 holds the run, reports and sums up
            if not _is_finished(cfg, run):
                launcher.train(cfg, run, method)
            return None
        directories[run.directory.parent] = None
        jobs = app.ValidateJobs.jobs
        place = f"[{HydraConfig.get().job.num + 1}/{jobs}] " if jobs > 1 else ""
        known = _is_finished(cfg, run)
        if cfg.get("save_as") is not None:
            _refuse_to_replace(_saved_as(cfg), run)
        title = f"{place}{run.directory}"
        if known or shown:
            print(title, flush=True)
        else:
            config_tree.print_config_tree(cfg, title, HydraConfig.get().runtime.choices)
            shown = True
        try:
            row = run_to_completion(cfg, lambda cfg, run: launcher.train(cfg, run, method))
        finally:
            with suppress(OSError):  # of a full disk, say: the run comes first
                if not known:
                    directory = run.directory.parent
                    tables.write(directory, group_runs([directory]))
        note = " (finished before; resume=never repeats it)" if known else ""
        print(f"  {format_result(row)}{note}")
        if cfg.get("save_as") is not None:
            print(f"  teacher=saved teacher.name={cfg.save_as}  ({_save(cfg, run)})")
        described = TaskDescription.of(row)
        score = row[described.student_score("val")]
        # A search maximises, see conf/sweep/optuna.yaml.
        return None if score is None else described.score.rank(float(score))

    def finish() -> None:
        for directory in directories:
            tables.write_and_print(directory)

    app.launch(config_name, task, finish)


def _is_finished(cfg: DictConfig, run: Run) -> bool:
    return run.completed and not warm_start.should_restart(cfg, run)


def _saved_as(cfg: DictConfig) -> Path:
    return Path(cfg.paths.logs) / "teachers" / cfg.save_as


def _refuse_to_replace(place: Path, run: Run) -> None:
    """Keeps one network from taking the name of another: found before it is trained."""
    there = place / run.student.name
    if there.exists() and not (run.completed and there.read_bytes() == run.student.read_bytes()):
        raise UserError(
            f"save_as={place.name}: {place} holds another network; choose a name, or remove it"
        )


def _save(cfg: DictConfig, run: Run) -> Path:
    """Keeps the network of a run where it is found by name."""
    place = _saved_as(cfg)
    for path in (run.student, run.model):
        atomic_files.write(place / path.name, path.read_bytes())
    return place
