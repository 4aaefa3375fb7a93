"""Supervision: learning from labels, for teachers and for baselines."""

from torch import Tensor
from torch.nn import functional as F

from funmatch.data.batch import Batch
from funmatch.training.learner import Learner


class Supervision(Learner):
    """Cross-entropy to the labels; under mixup, to those of both partners in proportion."""

    def loss(self, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        logits = self.student(batch.view("student")).logits
        if batch.label is None:
            raise ValueError("labels are needed to learn from them, and this data has none")
        loss = F.cross_entropy(logits, batch.label)
        if batch.coefficient is not None and batch.partner_label is not None:
            partner = F.cross_entropy(logits, batch.partner_label)
            loss = batch.coefficient * loss + (1 - batch.coefficient) * partner
        return loss, {}
