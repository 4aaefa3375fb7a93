"""Distillation: a frozen teacher, a student, and what it means to match."""

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from funmatch.data.batch import Batch
from funmatch.models.network import Network
from funmatch.objectives.base import Objective
from funmatch.runtime.timer import Timer
from funmatch.targets.base import Targets
from funmatch.training.learner import Learner, Learning


class Distillation(Learner):
    """Teaches a student to say what the teacher says.

    Args:
        student: the network that learns.
        targets: the teacher's word on a training batch.
        references: the teacher's word on the batches of "val" and "test".
        objective: distance of student and teacher; heads of its own are trained along.
        learning: optimiser, schedule and log.
        teacher_clock: adds up the seconds that the targets take.
    """

    def __init__(
        self,
        student: Network,
        targets: Targets,
        references: Mapping[str, Targets],
        objective: Objective,
        learning: Learning,
        teacher_clock: Timer | None = None,
    ) -> None:
        super().__init__(student, learning)
        self.objective, self._teacher_clock = objective, teacher_clock or Timer()
        # In no `Module`: the teacher behind them is neither trained nor saved nor synchronised.
        self._targets, self._references = targets, references

    def loss(self, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        with self._teacher_clock(self.device):
            target = self._targets(batch)
        loss = self.objective(self.student(batch.view("student")), target, batch)
        return loss.total, loss.parts

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        super().on_save_checkpoint(checkpoint)
        self._targets.flush()  # a run that goes on from here does not ask for them again

    def reference(self, batch: Batch, split: str) -> Tensor:
        return self._references[split](batch).logits
