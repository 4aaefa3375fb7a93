"""The predictions of student and teacher for each test example, as a table: predictions.csv."""

import csv
import io
import math
from abc import abstractmethod
from collections.abc import Sequence

import torch
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.utilities import dim_zero_cat


class Predictions(Metric):
    """Table of predictions with a row per example, gathered from all ranks.

    Attributes:
        columns: index of the example, label, then the columns of `cells` for the student and
            for the teacher.
    """

    full_state_update = False
    columns: tuple[str, ...]
    rows: list[Tensor]

    def __init__(self) -> None:
        super().__init__()
        self.add_state("rows", [], dist_reduce_fx="cat")

    @abstractmethod
    def cells(self, prediction: Tensor) -> Sequence[Tensor]:
        """The columns [B] for the predictions [B, ...] of one network."""

    @abstractmethod
    def cell(self, column: str, value: float) -> str:
        """Text of a value in a column."""

    def label_column(self, label: Tensor) -> Tensor | None:
        """Labels [B, ...] as one number each: [B]; None if they are not single numbers."""
        return label

    def update(
        self, index: Tensor, student: Tensor, teacher: Tensor | None, label: Tensor | None
    ) -> None:
        """Args: index [B], predictions [B, ...] of student and teacher, labels [B, ...]."""
        unknown = torch.full((len(index),), torch.nan, device=student.device)
        of_student = self.cells(student)
        of_teacher = [unknown] * len(of_student) if teacher is None else self.cells(teacher)
        labels = None if label is None else self.label_column(label)
        columns = [index, unknown if labels is None else labels, *of_student, *of_teacher]
        self.rows.append(torch.stack([column.float() for column in columns], dim=1))

    def compute(self) -> Tensor:
        """The rows, sorted by example: float32 [N, len(columns)]; NaN for missing values."""
        rows = dim_zero_cat(self.rows)
        return rows[rows[:, 0].argsort()].cpu()

    def table(self, rows: Tensor) -> str:
        """Rows as CSV text, with NaN as an empty cell."""
        text = io.StringIO(newline="")
        writer = csv.writer(text)
        writer.writerow(self.columns)
        for row in rows.tolist():
            pairs = zip(self.columns, row, strict=True)
            writer.writerow("" if math.isnan(v) else self.cell(name, v) for name, v in pairs)
        return text.getvalue()
