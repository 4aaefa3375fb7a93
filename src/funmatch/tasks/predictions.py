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
    """Rows of numbers, one for each example, gathered from all ranks.

    Attributes:
        columns: the example's number, its label, then what `cells` gives of the student and of
            the teacher.
    """

    full_state_update = False
    columns: tuple[str, ...]
    rows: list[Tensor]

    def __init__(self) -> None:
        super().__init__()
        self.add_state("rows", [], dist_reduce_fx="cat")

    @abstractmethod
    def cells(self, prediction: Tensor) -> Sequence[Tensor]:
        """The columns [B] of one network's predictions [B, ...]."""

    @abstractmethod
    def cell(self, column: str, value: float) -> str:
        """The text of a number in a column."""

    def label_column(self, label: Tensor) -> Tensor | None:
        """Labels [B, ...] as one number each: [B]; None where they are none."""
        return label

    def update(
        self, index: Tensor, student: Tensor, teacher: Tensor | None, label: Tensor | None
    ) -> None:
        """Args: index [B], predictions [B, ...] of student and teacher, labels [B, ...]."""
        unknown = torch.full((len(index),), torch.nan, device=student.device)
        own = self.cells(student)
        of_teacher = [unknown] * len(own) if teacher is None else self.cells(teacher)
        shown = None if label is None else self.label_column(label)
        columns = [index, unknown if shown is None else shown, *own, *of_teacher]
        self.rows.append(torch.stack([column.float() for column in columns], dim=1))

    def compute(self) -> Tensor:
        """float32 [N, len(columns)], by example; NaN where there is nothing."""
        rows = dim_zero_cat(self.rows)
        return rows[rows[:, 0].argsort()].cpu()

    def table(self, rows: Tensor) -> str:
        """Rows as CSV text; NaN is an empty cell."""
        text = io.StringIO(newline="")
        writer = csv.writer(text)
        writer.writerow(self.columns)
        for row in rows.tolist():
            pairs = zip(self.columns, row, strict=True)
            writer.writerow("" if math.isnan(v) else self.cell(name, v) for name, v in pairs)
        return text.getvalue()
