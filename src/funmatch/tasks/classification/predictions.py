"""What student and teacher answer to each test image: the source of calibration and confusion."""

import csv
import io
import math

import torch
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.utilities import dim_zero_cat

COLUMNS = ("image", "label", "student", "student_confidence", "teacher", "teacher_confidence")


class Predictions(Metric):
    """The answers to all images, gathered from all ranks."""

    full_state_update = False
    rows: list[Tensor]

    def __init__(self) -> None:
        super().__init__()
        self.add_state("rows", [], dist_reduce_fx="cat")

    def update(
        self, index: Tensor, student: Tensor, teacher: Tensor | None, label: Tensor | None
    ) -> None:
        """Args: index [B], logits [B, C] of student and teacher, labels [B] or bool [B, C]."""
        unknown = torch.full((len(index),), torch.nan, device=student.device)
        if label is None or label.dtype == torch.bool:  # of several right ones none is the label
            label = unknown
        columns = [index, label]
        for logits in (student, teacher):
            best = (unknown, unknown) if logits is None else logits.float().softmax(1).max(1)
            columns += [best[1], best[0]]
        self.rows.append(torch.stack([column.float() for column in columns], dim=1))

    def compute(self) -> Tensor:
        """float32 [N, 6] in the order of `COLUMNS`, by image; NaN where there is none."""
        rows = dim_zero_cat(self.rows)
        return rows[rows[:, 0].argsort()].cpu()


def table(rows: Tensor) -> str:
    """The rows as CSV text: numbers of images, class numbers, confidences in [0, 1]."""
    text = io.StringIO(newline="")
    writer = csv.writer(text)
    writer.writerow(COLUMNS)
    writer.writerows(map(_cell, COLUMNS, row) for row in rows.tolist())
    return text.getvalue()


def _cell(column: str, value: float) -> str:
    if math.isnan(value):
        return ""
    return f"{value:.6f}" if column.endswith("confidence") else f"{value:.0f}"
