"""The paper's objective."""

import torch

from funmatch.core.losses import kl_divergence
from funmatch.data.batch import Batch
from funmatch.models.network import Output
from funmatch.objectives.base import Loss, Objective


class FunctionMatching(Objective):
    """The student must equal the teacher as a function of the view: KL, no labels.

    Args:
        temperature: T > 0, softens both distributions.

    Source: Beyer et al. 2022, sec. 3.
    """

    def __init__(self, temperature: float) -> None:
        super().__init__()
        if not temperature > 0:
            raise ValueError(f"temperature must be positive, got {temperature}")
        self.temperature = temperature

    def forward(self, student: Output, teacher: Output, batch: Batch) -> Loss:
        distances = [
            weight * kl_divergence(student.logits, logits, temperature=self.temperature).mean()
            for weight, logits in teacher.terms
        ]
        return Loss(torch.stack(distances).sum())
