"""The contract of a distillation objective: what is minimised between student and teacher.

One objective, one file. An objective is an `nn.Module`; its trainable heads and memories are made
in `setup`, where the run is known.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

from torch import Tensor, nn

from funmatch.data.batch import Batch
from funmatch.models.network import Network, Output
from funmatch.tasks.base import Task


@dataclass
class Loss:
    """A loss and its named parts.

    Attributes:
        total: scalar, minimised.
        parts: named scalars for the log.
    """

    total: Tensor
    parts: dict[str, Tensor] = field(default_factory=dict)


@dataclass(frozen=True)
class Context:
    """The facts of a run that an objective may need before training.

    Attributes:
        task: what a prediction means; its `label_loss` is the loss from labels.
        train_size: number of training examples, N.
        labels: of all of them, [N, ...]; None without labels.
        student_shapes: shape of each of the student's features for one example, by module name.
        teacher_shapes: likewise of the teacher.
        total_steps: length of the run in optimiser steps.
        seed: of the initial weights; the generators are seeded with it when `setup` is called.
        teacher_weights: copies of the teacher's weights, by member and name, for an objective that
            says `reads_teacher_weights`; else empty.
    """

    task: Task
    train_size: int
    labels: Tensor | None
    student_shapes: Mapping[str, tuple[int, ...]]
    teacher_shapes: Mapping[str, tuple[int, ...]]
    total_steps: int
    seed: int
    teacher_weights: Mapping[str, Tensor]


class Objective(nn.Module):
    """Base of all objectives.

    Attributes:
        student_features: names of the student's submodules whose outputs `forward` needs.
        teacher_features: likewise of the teacher; it is then one network, evaluated online.
        temperature: T > 0, at which several teachers' probabilities are averaged.
        couples_rows: whether the loss compares the examples of a batch with each other. Then it is
            refused with micro-batches or several ranks, which would change the loss.
        gathers_rows: whether such a loss gathers the rows of all ranks itself.
        reads_teacher_weights: whether `setup` reads `Context.teacher_weights`.
        sums_members: whether `forward` uses `Output.summed`, so that `teacher.combine=sum` works.
        lr_factors: learning rate of trainable heads, as a factor, by the name of the submodule.
    """

    student_features: tuple[str, ...] = ()
    teacher_features: tuple[str, ...] = ()
    temperature: float = 1.0
    couples_rows: bool = False
    gathers_rows: bool = False
    reads_teacher_weights: bool = False
    sums_members: bool = False
    lr_factors: Mapping[str, float] = {}  # read only

    def setup(self, context: Context) -> None:
        """Makes heads and memories; called once, before the optimiser is made.

        Args:
            context: the facts of the run. An override calls this method too: it stores the task.
        """
        self.task = context.task

    def forward(self, student: Output, teacher: Output, batch: Batch) -> Loss:
        """Compares the outputs of both networks for one piece of a batch.

        Args:
            student: its output for the student's views; receives the gradient.
            teacher: its output for its views; a constant.
            batch: the piece. Means over its examples are `batch.mean(values)`; losses from labels
                `self.task.label_loss(student.prediction, batch.truth)`, which weighs the labels of
                mixing partners.

        Returns:
            The share of this piece in the loss of the step; those of all pieces are added up.
        """
        raise NotImplementedError

    def prior(self, student: Network, step: int) -> Loss | None:
        """A loss on the student's weights, added once per step; or None.

        Args:
            student: its trainable network.
            step: the optimiser step, from 0.
        """
        return None

    def after_step(self) -> None:
        """Called after each optimiser step; not after a skipped one, whose loss is not finite."""


def refuse_split(objective: Objective, *, micro_batch: int | None, rows: int, ranks: int) -> None:
    """Refuses to split a batch under a loss that compares its examples with each other.

    Args:
        objective: of the run.
        micro_batch: examples in memory at a time; None: all.
        rows: examples of a batch on one rank.
        ranks: number of processes.

    Raises:
        ValueError: the loss would become another one; names the key and the remedy.
    """
    if not objective.couples_rows:
        return
    what = f"{type(objective).__name__} compares the examples of a batch with each other"
    if micro_batch is not None and micro_batch < rows:
        raise ValueError(
            f"compute.micro_batch={micro_batch}: {what}; choose compute.micro_batch=null"
        )
    if ranks > 1 and not objective.gathers_rows:
        raise ValueError(
            f"trainer.devices: {what}, and {ranks} ranks share it; choose trainer.devices=1"
        )


def heads_lr(objective: Objective, prefix: str) -> dict[str, float]:
    """The learning-rate factors of an objective's heads, by the name of the submodule.

    Args:
        objective: after `setup`.
        prefix: of the objective's name in the module that is optimised.

    Raises:
        ValueError: a submodule does not exist, or a factor is not positive.
    """
    known = dict(objective.named_modules())
    for name, factor in objective.lr_factors.items():
        if name not in known:
            raise ValueError(f"lr_factors: {type(objective).__name__} has no submodule {name!r}")
        if not factor > 0:
            raise ValueError(f"lr_factors: {name} must be positive, got {factor}")
    return {f"{prefix}.{name}": factor for name, factor in objective.lr_factors.items()}
