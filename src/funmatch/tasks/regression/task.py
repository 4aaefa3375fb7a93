"""Regression: a prediction is D numbers, as the label is."""

import torch
from torch import Tensor

from funmatch.tasks.base import Task
from funmatch.tasks.description import Figure, TaskDescription
from funmatch.tasks.regression.metrics import RegressionMetrics
from funmatch.tasks.regression.predictions import NumberPredictions

DESCRIPTION = TaskDescription(
    name="regression",
    model="image regressor",
    score=Figure("student_mae", "MAE", "min"),
    agreement=Figure("rmse_to_teacher", "RMSE to the teacher", "min"),
    distance=Figure("rmse_to_teacher", "RMSE to the teacher", "min"),
    columns=(
        "student_val_mae",
        "student_test_mae",
        "teacher_test_mae",
        "student_test_r2",
        "teacher_test_r2",
        "rmse_to_teacher",
    ),
    table={
        "MAE": "student_test_mae",
        "R²": "student_test_r2",
        "RMSE": "rmse_to_teacher",
        "teacher": "teacher_test_mae",
    },
    note=(
        "MAE of the student and of its teacher and RMSE from student to teacher are in the units "
        "of the labels; less is better. R² is a fraction."
    ),
    bounds=(0.0, None),
)


def mean(predictions: Tensor, weights: Tensor, *, temperature: float = 1.0) -> Tensor:
    """The weighted mean of K predictions [K, B, ...]: [B, ...]; no temperature changes it."""
    weights = weights.to(predictions)
    return torch.tensordot(weights / weights.sum(), predictions, dims=1)


class Regression(Task):
    """Predictions [B, D] against labels [B] (of one number) or [B, D], floating point.

    Args:
        outputs: D.
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
