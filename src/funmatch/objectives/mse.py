"""Matching of numbers: the squared distance between two predictions."""

from torch import Tensor

from funmatch.core.losses import squared_l2
from funmatch.data.batch import Batch
from funmatch.models.network import Output
from funmatch.objectives.base import Loss, Objective


class SquaredError(Objective):
    """The student must equal the teacher as a function of the view: squared error, no labels.

    With predictions s and t [B, ...] the loss is the mean over examples of |s - t|²; its gradient
    is 2 (s - t) / B. For logits it is the distance of Ba and Caruana.

    Source: Ba and Caruana 2014, sec. 2.2.
    """

    sums_members = True

    def forward(self, student: Output, teacher: Output, batch: Batch) -> Loss:
        def distance(prediction: Tensor) -> Tensor:
            squared = squared_l2(student.prediction.flatten(1), prediction.flatten(1))
            return batch.mean(squared, mask=student.mask)

        return Loss(teacher.summed(distance))
