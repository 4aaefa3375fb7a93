"""Distillation: a student is trained to match the outputs of a frozen teacher."""

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from funmatch.data.batch import Batch
from funmatch.models.network import Network
from funmatch.objectives.base import Objective, heads_lr
from funmatch.runtime.timer import Timer
from funmatch.targets.base import Targets
from funmatch.tasks.base import Task
from funmatch.training.learner import Learner, Learning


class Distillation(Learner):
    """Trains a student to match a teacher.

    Args:
        student: the network that is trained.
        targets: the teacher's output for a training batch.
        references: the teacher's output for the batches of "val" and "test".
        objective: distance of student and teacher; its heads are trained with the student.
        learning: settings of the optimisation.
        task: the meaning of a prediction.
        teacher_timer: adds up the seconds that the targets take.
    """

    def __init__(
        self,
        student: Network,
        targets: Targets,
        references: Mapping[str, Targets],
        objective: Objective,
        learning: Learning,
        task: Task,
        teacher_timer: Timer | None = None,
    ) -> None:
        super().__init__(student, learning, task)
        self.objective, self._teacher_timer = objective, teacher_timer or Timer()
        # In no `Module`: the teacher behind them is neither trained nor saved nor synchronised.
        self._targets, self._references = targets, references

    def loss(self, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        with self._teacher_timer(self.device):
            target = self._targets(batch)
        loss = self.objective(self.student(batch.view("student")), target, batch)
        return loss.total, loss.parts

    def prior(self, step: int) -> tuple[Tensor, dict[str, Tensor]] | None:
        prior = self.objective.prior(self.student, step)
        return None if prior is None else (prior.total, prior.parts)

    def after_step(self) -> None:
        self.objective.after_step()

    def lr_factors(self) -> dict[str, float]:
        return heads_lr(self.objective, "objective")

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        super().on_save_checkpoint(checkpoint)
        self._targets.flush()  # a run resumed from here does not compute them again

    def reference(self, batch: Batch, split: str) -> Tensor:
        return self._references[split](batch).prediction
