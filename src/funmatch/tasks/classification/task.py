"""Classification: a prediction is the logits of C classes."""

from collections.abc import Iterable

import torch
from torch import Tensor
from torch.nn import functional as F

from funmatch.core import ensembling
from funmatch.tasks.base import Task
from funmatch.tasks.classification.description import DESCRIPTION
from funmatch.tasks.classification.metrics import Fidelity, is_correct
from funmatch.tasks.classification.predictions import ClassPredictions


class Classification(Task):
    """Logits [B, C] against class indices [B], or bool [B, C] with several correct classes.

    Args:
        classes: number of classes C.
    """

    description = DESCRIPTION
    means = ensembling.MEANS
    is_distribution = True

    def __init__(self, classes: int) -> None:
        self.prediction_shape = (classes,)

    def example_loss(self, prediction: Tensor, label: Tensor) -> Tensor:
        """Cross-entropy, nats: [B]."""
        return F.cross_entropy(prediction, label, reduction="none")

    def metrics(self) -> Fidelity:
        return Fidelity()

    def predictions(self) -> ClassPredictions:
        return ClassPredictions()

    def view_average(self, predictions: Iterable[Tensor]) -> Tensor:
        """The logarithm of the mean probabilities over views; the logits if there is one view."""
        first, total, number = torch.empty(0), torch.empty(0), 0
        for number, logits in enumerate(predictions, 1):
            if number == 1:
                first, total = logits, logits.double().softmax(dim=-1)
            else:
                total += logits.double().softmax(dim=-1)
        return first if number == 1 else (total / number).log().float()

    def from_rows(self, rows: Tensor) -> Tensor:
        return rows  # the teacher may have more classes

    def relative_difference(self, rows: Tensor, others: Tensor) -> float:
        """As in the base class, but invariant to a shift of all logits of an example."""
        centred = (logits - logits.mean(dim=-1, keepdim=True) for logits in (rows, others))
        return super().relative_difference(*centred)

    def is_correct(self, prediction: Tensor, label: Tensor) -> Tensor:
        return is_correct(prediction, label)

    def misfit(self, prediction: Tensor) -> str:
        sums = prediction.float().sum(1)
        if (prediction >= 0).all() and torch.allclose(sums, torch.ones_like(sums), atol=1e-3):
            return "gives probabilities, as after a softmax; let it give logits"
        return ""
