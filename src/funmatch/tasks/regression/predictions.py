"""Numbers that student and teacher predict for each test example."""

from torch import Tensor

from funmatch.tasks.predictions import Predictions


class NumberPredictions(Predictions):
    """Label and predictions, in the units of the labels; the mean if there are several numbers."""

    columns = ("image", "label", "student", "teacher")

    def cells(self, prediction: Tensor) -> tuple[Tensor]:
        """Args: predictions [B, D]."""
        return (prediction.float().mean(dim=1),)

    def label_column(self, label: Tensor) -> Tensor:
        return label.flatten(1).mean(dim=1) if label.dim() > 1 else label

    def cell(self, column: str, value: float) -> str:
        return f"{value:.0f}" if column == "image" else f"{value:.6g}"
