"""The task: what a prediction means, how it is scored, combined, stored and shown.

A data set names its task (`task` in `conf/data/*.yaml`). Everything above asks the task, so a new
one is a folder beside `classification/`.
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
    """What a prediction means.

    Attributes:
        description: names and directions of its figures.
        prediction_shape: of the prediction of one example; [C] logits for classification.
        means: ways to combine the predictions of several teachers, by the value of
            `teacher.combine`; the first stands for the teacher where distances are summed ("sum").
        is_distribution: whether predictions are the logits of a distribution (softmax).
    """

    description: TaskDescription
    prediction_shape: tuple[int, ...]
    means: Mapping[str, Mean]
    is_distribution: bool = False

    @abstractmethod
    def example_loss(self, prediction: Tensor, label: Tensor) -> Tensor:
        """Loss of each example from its label.

        Args:
            prediction: [B, *prediction_shape], receives the gradient.
            label: [B, ...], of the same rows.

        Returns:
            [B].
        """

    @abstractmethod
    def metrics(self) -> MeanMetrics:
        """A new metric of student against teacher and truth; its names are those of the log."""

    @abstractmethod
    def predictions(self) -> Predictions:
        """A new table of predictions, gathered over the test split."""

    def label_loss(self, prediction: Tensor, truth: Truth | None) -> Tensor:
        """Loss of each example from the truth of its batch, that of mixing partners included.

        Args:
            prediction: [B, *prediction_shape], receives the gradient.
            truth: of the same rows.

        Returns:
            [B]; give it to `Batch.mean`.

        Raises:
            ValueError: there are no labels.
        """
        return known(truth).weighted(lambda label: self.example_loss(prediction, label))

    def view_average(self, predictions: Iterable[Tensor]) -> Tensor:
        """One network's prediction over several views of each example: [B, *prediction_shape].

        Args:
            predictions: float32 [B, *prediction_shape], of one view after the other.
        """
        number, total = 0, torch.empty(0)
        for number, prediction in enumerate(predictions, 1):
            total = prediction.double() if number == 1 else total + prediction.double()
        return (total / number).float()

    def to_rows(self, prediction: Tensor) -> Tensor:
        """Predictions as the rows of a stored array: [B, D]."""
        return prediction.flatten(1)

    def from_rows(self, rows: Tensor) -> Tensor:
        """The predictions of stored rows [B, D]: [B, *prediction_shape]."""
        return rows.reshape(len(rows), *self.prediction_shape)

    def relative_difference(self, rows: Tensor, others: Tensor) -> float:
        """By how much rows [B, D] differ from others, as a share of the norm of the others."""
        return float((rows - others).norm() / others.norm().clamp(min=1e-12))

    def truth_in_view(self, label: Tensor, view: View, side: int) -> Tensor:
        """The truth of views, from that of their images; the same unless it has a place in them.

        Args:
            label: [B, ...], of the images.
            view: box and flip of each image.
            side: of the views, pixels.
        """
        return label

    def example(self, network: Network | Frozen, rows: int) -> Tensor:
        """Random input for a network, in [0, 255]: float32 [rows, channels, S, S]."""
        return torch.rand(rows, len(network.mean), network.side, network.side) * 255

    def is_correct(self, prediction: Tensor, label: Tensor) -> Tensor | None:
        """Whether each prediction is right: bool [B]; None where none is simply right or wrong."""
        return None

    def misfit(self, prediction: Tensor) -> str:
        """What is wrong with the values of a network's predictions, and the remedy; "" if nothing.

        Args:
            prediction: [B, *prediction_shape], finite.
        """
        return ""


def known(truth: Truth | None) -> Truth:
    """The truth of a batch, where it has one.

    Raises:
        ValueError: there are no labels.
    """
    if truth is None:
        raise ValueError("labels are needed to learn from them, and this data has none")
    return truth
