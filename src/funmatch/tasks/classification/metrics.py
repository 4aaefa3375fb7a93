"""How good a student is, and how faithful: top-1, agreement with its teacher, KL to it."""

import torch
from torch import Tensor
from torchmetrics import Metric

from funmatch.core import losses

ACCURACIES = ("student_top1", "teacher_top1")
FIDELITIES = ("agreement_top1", "agreement_top5", "kl_to_teacher")


class Fidelity(Metric):
    """Means over all examples of all ranks; uneven batches count by their size.

    Accuracies and agreements are fractions in [0, 1], KL is in nats at T = 1. What needs labels is
    left out where there are none, what needs a teacher likewise.
    """

    full_state_update = False
    sums: Tensor
    counts: Tensor

    def __init__(self) -> None:
        super().__init__()
        size = len(ACCURACIES + FIDELITIES)
        for name in ("sums", "counts"):  # float32: not every device has float64
            self.add_state(name, torch.zeros(size), dist_reduce_fx="sum")

    def update(self, student: Tensor, teacher: Tensor | None, label: Tensor | None) -> None:
        """Args: logits [B, C] of student and teacher, labels [B] or bool [B, C] of right ones."""
        values: dict[str, Tensor] = {}
        if label is not None:
            values["student_top1"] = is_correct(student, label)
            if teacher is not None:
                values["teacher_top1"] = is_correct(teacher, label)
        if teacher is not None:
            top = min(5, student.shape[-1])
            values["agreement_top1"] = losses.agreement(student, teacher)
            values["agreement_top5"] = losses.agreement(student, teacher, k=top)
            values["kl_to_teacher"] = losses.kl_divergence(student.float(), teacher.float())
        for place, name in enumerate(ACCURACIES + FIDELITIES):
            if name in values:
                self.sums[place] += values[name].float().sum()
                self.counts[place] += len(values[name])

    def compute(self) -> dict[str, Tensor]:
        """The means of what was measured, by name."""
        counts = self.counts.cpu().double()
        means = self.sums.cpu().double() / counts
        names = zip(ACCURACIES + FIDELITIES, means, counts, strict=True)
        return {name: mean for name, mean, count in names if count}


def is_correct(logits: Tensor, label: Tensor) -> Tensor:
    """Whether the predicted class is right, of every example that has a label."""
    predicted = logits.argmax(dim=-1)
    if label.dtype != torch.bool:
        return predicted == label
    correct = label.gather(-1, predicted[:, None])[:, 0]
    return correct[label.any(dim=-1)]
