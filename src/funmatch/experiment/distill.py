"""Distillation of a student from the outputs of a teacher."""

from typing import Any

from lightning import seed_everything

from funmatch.config.errors import UserError
from funmatch.experiment import (
    cache_policy,
    datasets,
    fitting,
    input_check,
    networks,
    objective_setup,
    target_policy,
)
from funmatch.experiment.device import configure_torch, device
from funmatch.experiment.experiment import Experiment, Train
from funmatch.experiment.teachers import load_teacher
from funmatch.models.teacher import SUM, Teacher
from funmatch.objectives.base import Objective, refuse_split
from funmatch.runtime.timer import Timer
from funmatch.tasks.base import Task
from funmatch.training.callbacks.stopwatch import Stopwatch
from funmatch.training.distillation import Distillation


def distill(experiment: Experiment, train: Train) -> dict[str, Any]:
    """Trains a student on the outputs of a teacher.

    Args:
        experiment: has a teacher, an objective and targets.
        train: trains a teacher that is made on demand.

    Returns:
        The figures of the run.
    """
    configure_torch(experiment)
    assert experiment.objective is not None
    objective: Objective = experiment.objective()
    task = datasets.build_task(experiment.data)
    refuse_split(
        objective,
        micro_batch=experiment.compute.micro_batch,
        rows=experiment.rank_batch_size,
        ranks=experiment.ranks,
    )
    splits, recipe = datasets.load_splits(experiment), datasets.build_recipe(experiment)
    teacher = load_teacher(experiment, task, train, objective.teacher_features)
    weights = teacher.copy_weights() if objective.reads_teacher_weights else None
    assert experiment.teacher is not None
    members = zip(experiment.teacher.members.values(), teacher.members.values(), strict=True)
    for spec, network in members:
        input_check.check_network(experiment, spec, network, splits.val, task)
    _check_objective(experiment, objective, teacher, task)
    softened = teacher.at_temperature(objective.temperature)
    teacher_timer, target_timer = Timer(), Timer()
    # To make a teacher is no part of the run.
    stopwatch = Stopwatch(experiment.batch_size, teacher_timer, target_timer)
    seed_everything(experiment.init_seed, verbose=False)
    student = networks.build_student(experiment, objective.student_features)
    input_check.check_network(experiment, experiment.student, student, splits.val, task)
    objective_setup.set_up(
        objective,
        task,
        student,
        teacher,
        splits.train,
        total_steps=experiment.steps,
        seed=experiment.init_seed,
        device=device(experiment),
        weights=weights,
    )
    networks.warn_of_batch_norm(experiment, objective, "objective")
    images, placement = cache_policy.apply_cache(experiment, splits, student, task)

    with target_timer(device(experiment)):
        targets, needs_views = target_policy.training_targets(
            experiment, softened, recipe, images.train, task
        )
    references = {
        split: target_policy.evaluation_targets(experiment, teacher, source, task)
        for split, source in (("val", splits.val), ("test", splits.test))
    }
    learning = fitting.build_learning(experiment)
    learner = Distillation(student, targets, references, objective, learning, task, teacher_timer)
    sides = {"student": student.side, **(teacher.sides if needs_views else {})}
    data = datasets.build_datamodule(experiment, images, recipe, sides, placement, task)
    fitting.save_example_views(
        experiment, images, recipe, {"student": student.side, **teacher.sides}
    )
    try:
        figures = fitting.fit(experiment, learner, data, stopwatch, splits.test.classes)
    finally:
        targets.flush()
    return {**figures, "teacher_fingerprint": teacher.fingerprint()}


def _check_objective(
    experiment: Experiment, objective: Objective, teacher: Teacher, task: Task
) -> None:
    """Refuses an objective that needs more of the teacher than there is."""
    if objective.teacher_features and len(teacher.members) > 1:
        raise UserError("teacher.members: an objective that matches features takes one teacher")
    if len(teacher.members) > 1 and teacher.combine == SUM and not objective.sums_members:
        what = f"{type(objective).__name__} matches one prediction"
        raise UserError(f"teacher.combine=sum: {what}; choose {' or '.join(task.means)}")
    targets = experiment.targets
    if objective.teacher_features and targets is not None and targets.mode != "live":
        remedy = "recorded targets hold no features; choose targets=live"
        raise UserError(f"targets={targets.mode}: {remedy}")
