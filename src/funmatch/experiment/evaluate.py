"""Measuring a finished student, or a teacher, on one split."""

import numpy as np
import torch

from funmatch.config.errors import UserError
from funmatch.data.batch import Batch, Truth
from funmatch.experiment import datasets, networks, target_policy
from funmatch.experiment.device import configure_torch, device
from funmatch.experiment.experiment import Experiment, Setup
from funmatch.experiment.teachers import load_teacher
from funmatch.experiment.train_here import train_here
from funmatch.models.frozen import Frozen
from funmatch.tasks.description import column
from funmatch.tasks.metrics import MeanMetrics
from funmatch.views.evaluation_views import EvaluationStream, EvaluationViews


def evaluate_student(experiment: Experiment, split: str) -> dict[str, float]:
    """The metrics of the student that a run has left, on one split."""
    configure_torch(experiment)
    run, task = experiment.run, datasets.build_task(experiment.data)
    source = datasets.load_evaluation_splits(experiment).part(split)
    student = networks.load_student(experiment)
    targets = None
    if experiment.teacher is not None:
        teacher = load_teacher(experiment, task, train_here)
        if run.result.get("teacher_fingerprint", teacher.fingerprint()) != teacher.fingerprint():
            raise UserError(f"{run.directory}: was taught by another teacher than that of today")
        targets = target_policy.evaluation_targets(experiment, teacher, source, task)
    current = device(experiment)
    metrics, frozen = task.metrics().to(current), Frozen(student)
    views = EvaluationViews(source, student.resize, student.side, task.truth_in_view)
    stream = EvaluationStream(views, batch_size=experiment.batch_size)
    for number in range(len(stream)):
        batch = stream[number].to(current)
        target = None if targets is None else targets(batch).prediction
        metrics.update(frozen(batch.view("student")).prediction, target, batch.label)
    return _columns(metrics, split)


def evaluate_teacher(setup: Setup, split: str) -> dict[str, float]:
    """The score of a teacher on one split."""
    configure_torch(setup)
    source, task = (
        datasets.load_evaluation_splits(setup).part(split),
        datasets.build_task(setup.data),
    )
    teacher = load_teacher(setup, task, train_here)
    index, member = np.arange(len(source)), next(iter(teacher.members.values()))
    views = EvaluationViews(source, member.resize, member.side, task.truth_in_view)
    label = views.labels(index)
    if label is None:
        raise UserError(f"data={setup.data.name}: has no labels to measure a teacher by")
    targets = target_policy.evaluation_targets(setup, teacher, source, task)
    metrics = task.metrics()
    # The predictions of all images are stored, so no view is needed.
    prediction = targets(Batch(torch.from_numpy(index), Truth(label), 0, {})).prediction
    metrics.update(prediction, prediction, label)
    columns = _columns(metrics, split).items()
    return {name: value for name, value in columns if name.startswith("teacher")}


def _columns(metrics: MeanMetrics, split: str) -> dict[str, float]:
    return {column(f"{split}/{name}"): float(mean) for name, mean in metrics.compute().items()}
