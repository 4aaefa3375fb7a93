"""Runs the trainer over a run, from its last checkpoint to its summary."""

import json
import logging
import shutil
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from lightning import LightningDataModule
from lightning.pytorch.loggers import Logger
from omegaconf import OmegaConf

from funmatch.config import identity
from funmatch.data.sources import Splits
from funmatch.experiment import warm_start
from funmatch.experiment.build import build
from funmatch.experiment.device import device
from funmatch.experiment.experiment import Experiment
from funmatch.experiment.trainer import build_trainer
from funmatch.models import load_weights
from funmatch.runs import checkpoint_files
from funmatch.runtime import atomic_files, distributed, log
from funmatch.runtime.preemption import STOP
from funmatch.tasks.description import column
from funmatch.training.callbacks.best_student import BestStudent, step_of
from funmatch.training.callbacks.checkpoint import PeriodicCheckpoint
from funmatch.training.callbacks.stopwatch import Stopwatch
from funmatch.training.learner import Learner, Learning
from funmatch.training.loggers.csv import CsvLogger
from funmatch.views.example_views import contact_sheet, example_views
from funmatch.views.recipes import Recipe

_log = logging.getLogger(__name__)


def fit(
    experiment: Experiment,
    learner: Learner,
    data: LightningDataModule,
    stopwatch: Stopwatch,
    classes: Sequence[str],
) -> dict[str, Any]:
    """Trains to the last step, then measures val, and test once with the best student."""
    run, steps = experiment.run, experiment.steps
    if distributed.rank() == 0:
        atomic_files.write(run.model, _model_json(experiment))
    task = learner.task.description
    best = BestStudent(run.student, task)
    latest = PeriodicCheckpoint(
        run.checkpoints,
        every=experiment.checkpoint_every,
        keep=experiment.checkpoint_keep,
        validate_every=experiment.validate_every,
        total=steps,
    )
    further = [each for each in experiment.callbacks().values() if each is not None]
    callbacks = [stopwatch, best, latest, *further]
    state = _first_state(experiment)
    loggers: list[Logger] = []
    failed = True
    try:
        loggers += _loggers(experiment, 0 if state is None else checkpoint_files.step(state))
        _notify_loggers(loggers, "begin", run)
        trainer = build_trainer(experiment, callbacks, loggers)
        with STOP.deferred():
            trainer.fit(learner, data, ckpt_path=None if state is None else str(state))
        # The trainer validates at multiples only; nor has it, if the best student was lost since.
        if steps % experiment.validate_every or not best.step:
            trainer.validate(learner, data, verbose=False)
        trainer.strategy.barrier()  # rank 0 has written the best student
        load_weights.load(learner.student.net, run.student)
        trainer.test(learner, data, verbose=False)
        measured = {k: float(v) for k, v in trainer.callback_metrics.items() if "test/" in k}
        figures = {
            task.student_score("val"): best.score if best.metric == task.score.metric else None,
            **{column(name): value for name, value in measured.items()},
            **stopwatch.figures(),
            "best_step": best.step,
            "selected_by": best.metric,
            "selected_score": best.score,
            "skipped_steps": learner.skipped,
        }
        if distributed.rank() == 0:
            atomic_files.write(run.predictions, learner.predictions.table(learner.predicted))
            _notify_loggers(loggers, "conclude", run, classes, figures)
        failed = False
        return figures
    finally:
        _notify_loggers(loggers, "close", failed=failed)


def _notify_loggers(loggers: list[Logger], what: str, *args: Any, **more: Any) -> None:
    """Calls a method that only some loggers have."""
    for logger in loggers:
        if hasattr(logger, what):
            getattr(logger, what)(*args, **more)


def build_learning(experiment: Experiment) -> Learning:
    """How a network learns: optimiser, schedule, clipping, micro-batches."""
    fused = experiment.compute.fused
    return Learning(
        optimizer=experiment.optimizer(),
        schedule=_schedule(experiment),
        log_every=experiment.trainer["log_every_n_steps"],
        seed=experiment.init_seed,
        clip_norm=experiment.clip_norm,
        max_skipped=experiment.max_skipped,
        micro_batch=experiment.compute.micro_batch,
        fused=device(experiment).type == "cuda" if fused == "auto" else fused,
    )


def _schedule(experiment: Experiment) -> Callable[[int], float]:
    """Multiplier of the learning rate at a step."""
    schedule = experiment.schedule(total_steps=experiment.steps)
    # Hydra's own partial checks its target at each call: 0.16 ms a step.
    return partial(schedule.func, *schedule.args, **schedule.keywords)


def _first_state(experiment: Experiment) -> Path | None:
    """The checkpoint that training continues from: the run's own, that of another run, or none."""
    run, total = experiment.run, experiment.steps
    if (
        not warm_start.should_restart(experiment)
        and (state := run.checkpoints.newest(_info)) is not None
    ):
        _info(f"resuming from step {checkpoint_files.step(state)} of {total}")
        return state
    if (origin := warm_start.warm_start_source(experiment)) is None:
        return None
    source, state = origin
    step = checkpoint_files.step(state)
    old_rate, new_rate = (
        _schedule(each)(step)
        for each in (build(identity.read(source.directory / "config.yaml")), experiment)
    )
    _info(
        f"resuming from step {step} of {source.directory}: the schedule is now that of {total} "
        f"steps, so the learning rate goes from {old_rate:.3g} to {new_rate:.3g} of its peak; "
        f"a run of {total} steps from the beginning would not end the same"
    )
    if distributed.rank() == 0:
        shutil.copy(source.metrics, run.metrics)
        if 0 <= step_of(source.student) <= step:
            shutil.copy(source.student, run.student)
    return state


def _info(message: str) -> None:
    log.rank_zero_info(_log, message)


def _loggers(experiment: Experiment, done: int) -> list[Logger]:
    """metrics.csv, and what the logger group names; for rank 0."""
    if distributed.rank() != 0:
        return []
    run = experiment.run
    loggers: list[Logger] = [CsvLogger(run.metrics, step=done)]
    for logger in experiment.loggers().values():
        if isinstance(logger, partial):
            logger = logger(
                run,
                step=done,
                config=dict(experiment.config),
                group=experiment.name,
                job_type=experiment.recipe_name,
                tags=_tags(experiment),
            )
        loggers.append(logger)
    return loggers


def _tags(experiment: Experiment) -> list[str]:
    """Tags by which runs are found: the recipe, and the option of each group."""
    typed = (
        experiment.run.directory / ".hydra" / "hydra.yaml"
    )  # ranks of ours are not started by Hydra
    chosen = OmegaConf.load(typed).hydra.runtime.choices if typed.exists() else {}
    groups = ("data", "teacher", "student", "model")
    return [experiment.recipe_name, *(f"{g}={chosen[g]}" for g in groups if chosen.get(g))]


def _model_json(experiment: Experiment) -> str:
    """What is needed to build the student again, as JSON."""
    return json.dumps(experiment.student.settings, indent=2) + "\n"


def save_example_views(
    experiment: Experiment, data: Splits, recipe: Recipe, sides: dict[str, int]
) -> None:
    """Saves views.png: what each network sees in the first step."""
    path = experiment.run.views
    if distributed.rank() == 0 and not path.exists():
        views = example_views(
            data.train,
            recipe,
            sides=sides,
            batch_size=experiment.batch_size,
            seed=experiment.seed,
            step=0,
        )
        atomic_files.write(path, contact_sheet(views))
