"""Regression: a prediction, like a label, is D numbers."""

import torch
from torch import Tensor

from funmatch.tasks.base import Task
from funmatch.tasks.regression.description import DESCRIPTION
from funmatch.tasks.regression.metrics import RegressionMetrics
from funmatch.tasks.regression.predictions import NumberPredictions


def mean(predictions: Tensor, weights: Tensor, *, temperature: float = 1.0) -> Tensor:
    """The weighted mean of K predictions [K, B, ...]: [B, ...]; temperature has no effect."""
    weights = weights.to(predictions)
    return torch.tensordot(weights / weights.sum(), predictions, dims=1)


class Regression(Task):
    """Predictions [B, D] against labels [B] (of one number) or [B, D], floating point.

    Args:
        outputs: number of outputs D.
    """

    description = DESCRIPTION

    def __init__(self, outputs: int = 1) -> None:
        self.prediction_shape = (outputs,)
        self.means = {"mean": mean}

    def example_loss(self, prediction: Tensor, label: Tensor) -> Tensor:
        """Squared error, summed over the D numbers: [B]."""
        return (prediction - label.reshape(prediction.shape)).square().sum(dim=-1)

    def metrics(self) -> RegressionMetrics:
        return RegressionMetrics()

    def predictions(self) -> NumberPredictions:
        return NumberPredictions()
