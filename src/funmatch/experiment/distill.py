"""Distillation of a student from the outputs of a teacher."""

from typing import Any

from lightning import seed_everything
from omegaconf import DictConfig

from funmatch.config import schema
from funmatch.config.errors import UserError
from funmatch.experiment import (
    build,
    cache_policy,
    fitting,
    input_check,
    objective_setup,
    target_policy,
)
from funmatch.experiment.teachers import load_teacher
from funmatch.models.teacher import SUM
from funmatch.objectives.base import refuse_split
from funmatch.runs.directory import Run
from funmatch.runtime.allowlist import instantiate
from funmatch.runtime.timer import Timer
from funmatch.training.callbacks.stopwatch import Stopwatch
from funmatch.training.distillation import Distillation


def distill(cfg: DictConfig, run: Run) -> dict[str, Any]:
    """Trains a student on the outputs of a teacher; returns the figures of the run."""
    fitting.prepare(cfg)
    objective, task = instantiate(cfg.objective), build.task(cfg)
    rows, ranks = cfg.batch_size, schema.rank_count(cfg)
    refuse_split(objective, micro_batch=cfg.compute.micro_batch, rows=rows // ranks, ranks=ranks)
    splits, law = build.splits(cfg), build.recipe(cfg)
    teacher = load_teacher(cfg, objective.teacher_features)
    members = zip(schema.teachers(cfg).items(), teacher.members.values(), strict=True)
    for (key, part), network in members:
        input_check.check_network(cfg, key, part, network, splits.val, task)
    if objective.teacher_features and len(teacher.members) > 1:
        raise UserError("teacher.members: an objective that matches features takes one teacher")
    if len(teacher.members) > 1 and teacher.combine == SUM and not objective.sums_members:
        what = f"{type(objective).__name__} matches one prediction"
        raise UserError(f"teacher.combine=sum: {what}; choose {' or '.join(task.means)}")
    if objective.teacher_features and cfg.targets.mode != "live":
        remedy = "records hold no features; choose targets=live"
        raise UserError(f"targets={cfg.targets.mode}: {remedy}")
    softened = teacher.at_temperature(objective.temperature)
    clock, before = Timer(), Timer()
    stopwatch = Stopwatch(cfg.batch_size, clock, before)  # to make a teacher is no part of the run
    seed_everything(cfg.init_seed, verbose=False)
    student = build.learner(cfg, "student", objective.student_features)
    input_check.check_network(cfg, "student", cfg.student, student, splits.val, task)
    objective_setup.set_up(
        objective,
        task,
        student,
        teacher,
        splits.train,
        total_steps=schema.total_steps(cfg),
        seed=cfg.init_seed,
        device=build.device(cfg),
    )
    build.note_batch_norms(cfg, objective, "objective")
    images, placement = cache_policy.apply_cache(cfg, splits, student, task)

    with before(build.device(cfg)):
        words, needed = target_policy.training_targets(cfg, softened, law, images.train, task)
    references = {
        "val": target_policy.evaluation_targets(cfg, teacher, splits.val, task),
        "test": target_policy.evaluation_targets(cfg, teacher, splits.test, task),
    }
    learner = Distillation(student, words, references, objective, build.learning(cfg), task, clock)
    sides = {"student": student.side, **(teacher.sides if needed else {})}
    data = build.stream(cfg, images, law, sides, placement, task)
    fitting.save_example_views(cfg, run, images, law, {"student": student.side, **teacher.sides})
    try:
        figures = fitting.fit(cfg, run, learner, data, stopwatch, splits.test.classes)
    finally:
        words.flush()
    return {**figures, "teacher_fingerprint": teacher.fingerprint()}
