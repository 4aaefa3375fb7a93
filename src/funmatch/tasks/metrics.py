"""Metrics that are means over examples, for all tasks."""

from abc import abstractmethod
from collections.abc import Mapping

import torch
from torch import Tensor
from torchmetrics import Metric


class MeanMetrics(Metric):
    """Means over all examples of all ranks; batches are weighted by their size.

    Args:
        names: names of the values that are averaged.
    """

    full_state_update = False
    sums: Tensor
    counts: Tensor

    def __init__(self, names: tuple[str, ...]) -> None:
        super().__init__()
        self._names = names
        for name in ("sums", "counts"):  # float32: not every device has float64
            self.add_state(name, torch.zeros(len(names)), dist_reduce_fx="sum")

    @abstractmethod
    def values(
        self, student: Tensor, teacher: Tensor | None, label: Tensor | None
    ) -> Mapping[str, Tensor]:
        """The values [B] to average, by name, without those that cannot be measured."""

    def update(self, student: Tensor, teacher: Tensor | None, label: Tensor | None) -> None:
        """Args: predictions [B, ...] of student and teacher and labels [B, ...]; None: none."""
        values = self.values(student, teacher, label)
        for index, name in enumerate(self._names):
            if name in values:
                self.sums[index] += values[name].float().sum()
                self.counts[index] += len(values[name])

    def compute(self) -> dict[str, Tensor]:
        """The means of the measured values, by name: float64, on the CPU."""
        counts = self.counts.cpu().double()
        means = self.sums.cpu().double() / counts
        names = zip(self._names, means, counts, strict=True)
        return {name: mean for name, mean, count in names if count}
