"""Classes that student and teacher predict for each test image, with their confidence."""

import torch
from torch import Tensor

from funmatch.tasks.predictions import Predictions

COLUMNS = ("image", "label", "student", "student_confidence", "teacher", "teacher_confidence")


class ClassPredictions(Predictions):
    """Indices of image and classes, and confidences in [0, 1].

    Reliability diagrams and confusion matrices are computed from it.
    """

    columns = COLUMNS

    def cells(self, prediction: Tensor) -> tuple[Tensor, Tensor]:
        """Args: logits [B, C]."""
        best = prediction.float().softmax(1).max(1)
        return best[1], best[0]

    def label_column(self, label: Tensor) -> Tensor | None:
        # An example with several correct classes has no single label.
        return None if label.dtype == torch.bool else label

    def cell(self, column: str, value: float) -> str:
        return f"{value:.6f}" if column.endswith("confidence") else f"{value:.0f}"
