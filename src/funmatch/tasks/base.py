"""Base class of tasks: how predictions are scored, combined, stored and shown.

A data set names its task (`task` in `conf/data/*.yaml`). All other modules depend on this
interface only, so a new task is a folder beside `classification/`.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping

import torch
from torch import Tensor

from funmatch.core.geometry import View
from funmatch.data.batch import Truth
from funmatch.models.frozen import Frozen
from funmatch.models.network import Network
from funmatch.models.teacher import Mean
from funmatch.tasks.description import TaskDescription
from funmatch.tasks.metrics import MeanMetrics
from funmatch.tasks.predictions import Predictions


class Task(ABC):
    """A task: the meaning of a prediction.

    Attributes:
        description: names and directions of its figures.
        prediction_shape: shape of the prediction of one example; (C,) for classification.
        means: functions that combine the predictions of several teachers, by the value of
            `teacher.combine`. With `teacher.combine=sum`, where distances are summed, the first
            one gives the prediction of the teacher.
        is_distribution: True if predictions are the logits of a distribution (softmax).
    """

    description: TaskDescription
    prediction_shape: tuple[int, ...]
    means: Mapping[str, Mean]
    is_distribution: bool = False

    @abstractmethod
    def example_loss(self, prediction: Tensor, label: Tensor) -> Tensor:
        """Supervised loss of each example.

        Args:
            prediction: [B, *prediction_shape], receives the gradient.
            label: [B, ...], labels of the same examples.

        Returns:
            [B].
        """

    @abstractmethod
    def metrics(self) -> MeanMetrics:
        """A new metric of the student against teacher and labels; it names its values as logged."""

    @abstractmethod
    def predictions(self) -> Predictions:
        """A new table of predictions, to be filled with the test split."""

    def label_loss(self, prediction: Tensor, truth: Truth | None) -> Tensor:
        """Supervised loss of each example of a batch whose images may be mixed.

        Args:
            prediction: [B, *prediction_shape], receives the gradient.
            truth: labels of the batch, including those of mixing partners.

        Returns:
            [B]; average it with `Batch.mean`.

        Raises:
            ValueError: the data has no labels.
        """
        return require_labels(truth).weighted(lambda label: self.example_loss(prediction, label))

    def view_average(self, predictions: Iterable[Tensor]) -> Tensor:
        """The mean prediction of one network over several views: [B, *prediction_shape].

        Args:
            predictions: float32 [B, *prediction_shape] for each view.
        """
        number, total = 0, torch.empty(0)
        for number, prediction in enumerate(predictions, 1):
            total = prediction.double() if number == 1 else total + prediction.double()
        return (total / number).float()

    def to_rows(self, prediction: Tensor) -> Tensor:
        """Predictions as rows of a stored array: [B, D]."""
        return prediction.flatten(1)

    def from_rows(self, rows: Tensor) -> Tensor:
        """Predictions from stored rows [B, D]: [B, *prediction_shape]."""
        return rows.reshape(len(rows), *self.prediction_shape)

    def relative_difference(self, rows: Tensor, others: Tensor) -> float:
        """Norm of the difference of two arrays of rows [B, D], relative to that of the second."""
        return float((rows - others).norm() / others.norm().clamp(min=1e-12))

    def truth_in_view(self, label: Tensor, view: View, side: int) -> Tensor:
        """Labels of views, from the labels of their images; equal unless labels have a position.

        Args:
            label: [B, ...], labels of the images.
            view: crop box and flip of each image.
            side: side of the views, pixels.
        """
        return label

    def example(self, network: Network | Frozen, rows: int) -> Tensor:
        """Random input of a network, in [0, 255]: float32 [rows, channels, S, S]."""
        return torch.rand(rows, len(network.mean), network.side, network.side) * 255

    def is_correct(self, prediction: Tensor, label: Tensor) -> Tensor | None:
        """Correctness of each prediction: bool [B]; None if the task has no such notion."""
        return None

    def misfit(self, prediction: Tensor) -> str:
        """Error message about predictions with implausible values; "" if they are plausible.

        Args:
            prediction: [B, *prediction_shape], finite.
        """
        return ""


def require_labels(truth: Truth | None) -> Truth:
    """The labels of a batch.

    Raises:
        ValueError: the data has no labels.
    """
    if truth is None:
        raise ValueError("labels are needed for a supervised loss, and this data has none")
    return truth
