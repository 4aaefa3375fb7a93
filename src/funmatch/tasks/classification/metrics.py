"""Metrics of a classifier: top-1, agreement with its teacher, KL divergence to it."""

import torch
from torch import Tensor

from funmatch.core import losses
from funmatch.tasks.metrics import MeanMetrics

ACCURACIES = ("student_top1", "teacher_top1")
FIDELITIES = ("agreement_top1", "agreement_top5", "kl_to_teacher")


class Fidelity(MeanMetrics):
    """Accuracies and agreements as fractions in [0, 1], KL in nats at T = 1.

    Values that need labels or a teacher are omitted if the data has no labels or teacher.
    """

    def __init__(self) -> None:
        super().__init__(ACCURACIES + FIDELITIES)

    def values(
        self, student: Tensor, teacher: Tensor | None, label: Tensor | None
    ) -> dict[str, Tensor]:
        """Args: logits [B, C] of student and teacher; labels [B] or bool [B, C]."""
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
        return values


def is_correct(logits: Tensor, label: Tensor) -> Tensor:
    """Correctness of the predicted class, for the examples that have a label: bool."""
    predicted = logits.argmax(dim=-1)
    if label.dtype != torch.bool:
        return predicted == label
    correct = label.gather(-1, predicted[:, None])[:, 0]
    return correct[label.any(dim=-1)]
