"""Means over examples, the form of every task's metrics."""

from abc import abstractmethod
from collections.abc import Mapping

import torch
from torch import Tensor
from torchmetrics import Metric


class MeanMetrics(Metric):
    """Means over all examples of all ranks; uneven batches count by their size.

    Args:
        names: of what is summed.
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
        """The values [B] to be averaged, by name; what cannot be measured is left out."""

    def update(self, student: Tensor, teacher: Tensor | None, label: Tensor | None) -> None:
        """Args: predictions [B, ...] of student and teacher, labels [B, ...]; None: no such."""
        values = self.values(student, teacher, label)
        for place, name in enumerate(self._names):
            if name in values:
                self.sums[place] += values[name].float().sum()
                self.counts[place] += len(values[name])

    def compute(self) -> dict[str, Tensor]:
        """The means of what was measured, by name: float64, on the CPU."""
        counts = self.counts.cpu().double()
        means = self.sums.cpu().double() / counts
        names = zip(self._names, means, counts, strict=True)
        return {name: mean for name, mean, count in names if count}
