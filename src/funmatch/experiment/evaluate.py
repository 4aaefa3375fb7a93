"""Measuring a finished student, or a teacher, on one split."""

import numpy as np
import torch
from omegaconf import DictConfig

from funmatch.config.errors import UserError
from funmatch.data.batch import Batch, Truth
from funmatch.experiment import build, fitting, target_policy
from funmatch.experiment.teachers import load_teacher
from funmatch.models.frozen import Frozen
from funmatch.runs.directory import Run
from funmatch.tasks.description import column
from funmatch.tasks.metrics import MeanMetrics
from funmatch.views.evaluation_views import EvaluationStream, EvaluationViews


def evaluate_student(cfg: DictConfig, run: Run, split: str) -> dict[str, float]:
    """The metrics of the student that a run has left, on one split."""
    fitting.prepare(cfg)
    source, task = build.evaluation(cfg).part(split), build.task(cfg)
    student = build.left(cfg, run)
    words = None
    if "teacher" in cfg:
        teacher = load_teacher(cfg)
        if run.result.get("teacher_fingerprint", teacher.fingerprint()) != teacher.fingerprint():
            raise UserError(f"{run.directory}: was taught by another teacher than the one at hand")
        words = target_policy.evaluation_targets(cfg, teacher, source, task)
    place = build.device(cfg)
    metrics, frozen = task.metrics().to(place), Frozen(student)
    views = EvaluationViews(source, student.resize, student.side, task.truth_in_view)
    stream = EvaluationStream(views, batch_size=cfg.batch_size)
    for number in range(len(stream)):
        batch = stream[number].to(place)
        said = None if words is None else words(batch).prediction
        metrics.update(frozen(batch.view("student")).prediction, said, batch.label)
    return _columns(metrics, split)


def evaluate_teacher(cfg: DictConfig, split: str) -> dict[str, float]:
    """The score of a teacher on one split."""
    fitting.prepare(cfg)
    source, task = build.evaluation(cfg).part(split), build.task(cfg)
    index = np.arange(len(source))
    label = source.labels(index)
    if label is None:
        raise UserError(f"data={cfg.data.name}: has no labels to measure a teacher by")
    words = target_policy.evaluation_targets(cfg, load_teacher(cfg), source, task)
    metrics = task.metrics()
    views = {"student": torch.empty(0)}  # its predictions are computed already
    said = words(Batch(torch.from_numpy(index), Truth(label), 0, views)).prediction
    metrics.update(said, said, label)
    found = _columns(metrics, split)
    return {name: value for name, value in found.items() if name.startswith("teacher")}


def _columns(metrics: MeanMetrics, split: str) -> dict[str, float]:
    found = metrics.compute()
    return {column(f"{split}/{name}"): float(mean) for name, mean in found.items()}
