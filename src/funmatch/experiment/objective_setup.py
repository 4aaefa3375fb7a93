"""Sets up an objective: collects the facts of a run that it may need, and makes its heads."""

from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor

from funmatch.data.sources import Source
from funmatch.models.network import Network, Output
from funmatch.models.teacher import Teacher
from funmatch.objectives.base import Context, Objective
from funmatch.tasks.base import Task

_PROBE_ROWS = 2  # examples that are enough to see the shape of a feature


def set_up(
    objective: Objective,
    task: Task,
    student: Network,
    teacher: Teacher,
    source: Source,
    *,
    total_steps: int,
    seed: int,
    device: torch.device,
    weights: Mapping[str, Tensor] | None = None,
) -> None:
    """Calls the objective's `setup`.

    What it draws, the first weights of its heads, is a function of `seed`, and no draw of any other
    part of the run changes by it.

    Args:
        objective: has named the features that it needs.
        task: what a prediction means.
        student: keeps the features in `student_features`.
        teacher: keeps the features in `teacher_features`; it then has one member.
        source: the training examples.
        total_steps: length of the run, in optimiser steps.
        seed: the key `init_seed`.
        device: on which the teacher computes.
        weights: copies of the teacher's, if the objective reads them.
    """
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        student_shapes, teacher_shapes = {}, {}
        if objective.student_features:
            student_shapes = _shapes(_evaluated(student, task.example(student, _PROBE_ROWS)))
        if objective.teacher_features:
            (member,) = teacher.members.values()
            teacher_shapes = _shapes(member(task.example(member, _PROBE_ROWS).to(device)))
        torch.default_generator.manual_seed(seed)
        context = Context(
            task=task,
            train_size=len(source),
            labels=source.labels(np.arange(len(source))),
            student_shapes=student_shapes,
            teacher_shapes=teacher_shapes,
            total_steps=total_steps,
            seed=seed,
            teacher_weights=weights or {},
        )
        objective.setup(context)


@torch.no_grad()
def _evaluated(student: Network, pixels: Tensor) -> Output:
    """The student's output in evaluation mode, in which BatchNorm learns nothing of the example."""
    output = student.eval()(pixels)
    student.train()
    return output


def _shapes(output: Output) -> dict[str, tuple[int, ...]]:
    return {name: tuple(feature.shape[1:]) for name, feature in output.features.items()}
