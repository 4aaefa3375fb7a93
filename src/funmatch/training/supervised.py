"""Supervised training from labels, of teachers and of baselines."""

from torch import Tensor

from funmatch.data.batch import Batch
from funmatch.tasks.base import require_labels
from funmatch.training.learner import Learner


class Supervision(Learner):
    """The task's loss from labels; under mixup, from those of both partners in proportion."""

    def loss(self, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        prediction = self.student(batch.view("student")).prediction

        def mean(label: Tensor) -> Tensor:
            return batch.mean(self.task.example_loss(prediction, label))

        # The means are weighted, not the examples: c / B and c (1 / B) differ in the last bit.
        return require_labels(batch.truth).weighted(mean), {}
