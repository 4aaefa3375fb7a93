"""Runs the trainer over a run, from its last checkpoint to its summary."""

import json
import logging
import shutil
import warnings
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from lightning import LightningDataModule
from lightning.pytorch.loggers import Logger
from omegaconf import DictConfig, OmegaConf

from funmatch.config import identity, schema
from funmatch.data.sources import Splits
from funmatch.experiment import build, warm_start
from funmatch.experiment.trainer import build_trainer, set_flags
from funmatch.models import load_weights
from funmatch.runs import checkpoint_files
from funmatch.runs.directory import Run
from funmatch.runtime import atomic_files, distributed
from funmatch.runtime.allowlist import instantiate
from funmatch.runtime.preemption import STOP
from funmatch.tasks.description import column
from funmatch.training.callbacks.best_student import BestStudent, step_of
from funmatch.training.callbacks.checkpoint import PeriodicCheckpoint
from funmatch.training.callbacks.stopwatch import Stopwatch
from funmatch.training.learner import Learner
from funmatch.training.loggers.csv import CsvLogger
from funmatch.views.example_views import contact_sheet, example_views
from funmatch.views.recipes import Recipe


def fit(
    cfg: DictConfig,
    run: Run,
    learner: Learner,
    data: LightningDataModule,
    stopwatch: Stopwatch,
    classes: Sequence[str],
) -> dict[str, Any]:
    """Trains to the last step, then measures val, and test once with the best student."""
    steps = schema.total_steps(cfg)
    if distributed.rank() == 0:
        atomic_files.write(run.model, _description(cfg))
    task = learner.task.description
    best = BestStudent(run.student, task)
    latest = PeriodicCheckpoint(
        run.checkpoints,
        every=cfg.checkpoint_every,
        keep=cfg.checkpoint_keep,
        validate_every=cfg.validate_every,
        total=steps,
    )
    further = [each for each in instantiate(cfg.callbacks).values() if each is not None]
    callbacks = [stopwatch, best, latest, *further]
    state = _beginning(cfg, run)
    loggers: list[Logger] = []
    failed = True
    try:
        loggers += _loggers(cfg, run, 0 if state is None else checkpoint_files.step(state))
        _tell(loggers, "begin", run)
        trainer = build_trainer(cfg, run.directory, steps, callbacks, loggers)
        with STOP.deferred():
            trainer.fit(learner, data, ckpt_path=None if state is None else str(state))
        # The trainer validates at multiples only; nor has it, if the best student was lost since.
        if steps % cfg.validate_every or not best.step:
            trainer.validate(learner, data, verbose=False)
        trainer.strategy.barrier()  # rank 0 has written the best student
        load_weights.load(learner.student.net, run.student)
        trainer.test(learner, data, verbose=False)
        measured = {k: float(v) for k, v in trainer.callback_metrics.items() if "test/" in k}
        figures = {
            task.student_score("val"): best.score,
            **{column(name): value for name, value in measured.items()},
            **stopwatch.figures(),
            "best_step": best.step,
            "skipped_steps": learner.skipped,
        }
        if distributed.rank() == 0:
            atomic_files.write(run.predictions, learner.predictions.table(learner.predicted))
            _tell(loggers, "conclude", run, classes, figures)
        failed = False
        return figures
    finally:
        _tell(loggers, "close", failed=failed)


def _tell(loggers: list[Logger], what: str, *args: Any, **more: Any) -> None:
    """Calls a method that only some loggers have."""
    for logger in loggers:
        if hasattr(logger, what):
            getattr(logger, what)(*args, **more)


def prepare(cfg: DictConfig) -> None:
    """Tells torch where to compute, and silences what the frameworks say of themselves."""
    if cfg.compute.threads is not None:
        torch.set_num_threads(cfg.compute.threads)
    set_flags(cfg.trainer)
    if (place := build.device(cfg)).type == "cuda":
        torch.cuda.set_device(place)  # else each rank holds memory of the first one too
    for name in ("lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.ERROR)
    for message in (
        ".*does not have many workers.*",
        ".*isinstance.treespec, LeafSpec.*",
        ".*is smaller than the logging interval.*",
        ".*resuming from a checkpoint that ended.*",  # the stream begins at the restored step
        ".*sync_dist=True.*",  # our metrics are means over all ranks already
        r".*`lr_scheduler.step\(\)` before `optimizer.step\(\)`.*",  # the first were left out
        ".*`srun` command is available.*",  # nor is it needed where we start the ranks
    ):
        warnings.filterwarnings("ignore", message)


def _beginning(cfg: DictConfig, run: Run) -> Path | None:
    """The state that the run goes on from: its own, that of another run, or none."""
    total = schema.total_steps(cfg)
    if (
        not warm_start.should_restart(cfg, run)
        and (state := run.checkpoints.newest(build.say)) is not None
    ):
        build.say(f"going on from step {checkpoint_files.step(state)} of {total}")
        return state
    if (origin := warm_start.warm_start_source(cfg)) is None:
        return None
    source, state = origin
    step = checkpoint_files.step(state)
    there, here = (
        build.schedule(each)(step)
        for each in (identity.read(source.directory / "config.yaml"), cfg)
    )
    build.say(
        f"going on from step {step} of {source.directory}: the schedule is now that of {total} "
        f"steps, so the learning rate goes from {there:.3g} to {here:.3g} of its peak; "
        f"a run of {total} steps from the beginning would not end the same"
    )
    if distributed.rank() == 0:
        shutil.copy(source.metrics, run.metrics)
        if 0 <= step_of(source.student) <= step:
            shutil.copy(source.student, run.student)
    return state


def _loggers(cfg: DictConfig, run: Run, done: int) -> list[Logger]:
    """metrics.csv, and what the logger group names; for rank 0."""
    if distributed.rank() != 0:
        return []
    loggers: list[Logger] = [CsvLogger(run.metrics, step=done)]
    for logger in instantiate(cfg.logger).values():
        if isinstance(logger, partial):
            logger = logger(
                run,
                step=done,
                config=OmegaConf.to_container(cfg, resolve=True),
                group=cfg.name,
                job_type=cfg.recipe.name,
                tags=_tags(cfg, run),
            )
        loggers.append(logger)
    return loggers


def _tags(cfg: DictConfig, run: Run) -> list[str]:
    """Words by which runs are found: the recipe, and what was chosen of each group."""
    typed = run.directory / ".hydra" / "hydra.yaml"  # ranks of ours are not started by Hydra
    chosen = OmegaConf.load(typed).hydra.runtime.choices if typed.exists() else {}
    groups = ("data", "teacher", "student", "model")
    return [cfg.recipe.name, *(f"{g}={chosen[g]}" for g in groups if chosen.get(g))]


def _description(cfg: DictConfig) -> str:
    """What is needed to build the student again, as JSON."""
    student = OmegaConf.to_container(schema.student(cfg), resolve=True)
    return json.dumps(student, indent=2) + "\n"


def save_example_views(
    cfg: DictConfig, run: Run, data: Splits, law: Recipe, sides: dict[str, int]
) -> None:
    """Saves views.png: what each network sees in the first step."""
    if distributed.rank() == 0 and not run.views.exists():
        given = {"batch_size": cfg.batch_size, "seed": cfg.seed, "step": 0}
        atomic_files.write(
            run.views, contact_sheet(example_views(data.train, law, sides=sides, **given))
        )
