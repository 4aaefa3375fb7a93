"""The ways of teaching: from a teacher, or from labels; and measuring what was learned."""

from typing import Any

from lightning import seed_everything
from omegaconf import DictConfig

from funmatch.config import schema
from funmatch.config.errors import UserError
from funmatch.experiment import build, cache_policy, fitting, input_check, target_policy
from funmatch.experiment.teachers import load_teacher
from funmatch.runs.directory import Run
from funmatch.runtime.allowlist import instantiate
from funmatch.runtime.timer import Timer
from funmatch.training.callbacks.stopwatch import Stopwatch
from funmatch.training.distillation import Distillation


def distill(cfg: DictConfig, run: Run) -> dict[str, Any]:
    """Trains a student on the outputs of a teacher; returns the figures of the run."""
    fitting.prepare(cfg)
    objective = instantiate(cfg.objective)
    splits, law = build.splits(cfg), build.recipe(cfg)
    teacher = load_teacher(cfg, objective.teacher_features)
    members = zip(schema.teachers(cfg).items(), teacher.members.values(), strict=True)
    for (key, part), network in members:
        input_check.check_network(cfg, key, part, network, splits.val)
    if objective.teacher_features and len(teacher.members) > 1:
        raise UserError("teacher.members: an objective that matches features takes one teacher")
    if objective.teacher_features and cfg.targets.mode != "live":
        remedy = "records hold no features; choose targets=live"
        raise UserError(f"targets={cfg.targets.mode}: {remedy}")
    softened = teacher.softened(getattr(objective, "temperature", 1.0))
    clock, before = Timer(), Timer()
    stopwatch = Stopwatch(cfg.batch_size, clock, before)  # to make a teacher is no part of the run
    seed_everything(cfg.init_seed, verbose=False)
    student = build.learner(cfg, "student", objective.student_features)
    input_check.check_network(cfg, "student", cfg.student, student, splits.val)
    images, brings = cache_policy.apply_cache(cfg, splits, student)

    with before(build.device(cfg)):
        words, needed = target_policy.training_targets(cfg, softened, law, images.train)
    references = {
        "val": target_policy.evaluation_targets(cfg, teacher, splits.val),
        "test": target_policy.evaluation_targets(cfg, teacher, splits.test),
    }
    learner = Distillation(student, words, references, objective, build.learning(cfg), clock)
    sides = {"student": student.side, **(teacher.sides if needed else {})}
    data = build.stream(cfg, images, law, sides, brings)
    fitting.save_example_views(cfg, run, images, law, {"student": student.side, **teacher.sides})
    try:
        figures = fitting.fit(cfg, run, learner, data, stopwatch, splits.test.classes)
    finally:
        words.flush()
    return {**figures, "teacher_fingerprint": teacher.fingerprint()}
