"""Function matching, the paper's objective: KL divergence of student and teacher."""

from torch import Tensor

from funmatch.core.losses import kl_divergence
from funmatch.data.batch import Batch
from funmatch.models.network import Output
from funmatch.objectives.base import Context, Loss, Objective


class FunctionMatching(Objective):
    """The student must equal the teacher as a function of the view: KL, no labels.

    Args:
        temperature: T > 0, softens both distributions.

    Source: Beyer et al. 2022, sec. 3.
    """

    sums_members = True

    def __init__(self, temperature: float) -> None:
        super().__init__()
        if not temperature > 0:
            raise ValueError(f"temperature must be positive, got {temperature}")
        self.temperature = temperature

    def setup(self, context: Context) -> None:
        super().setup(context)
        if not context.task.is_distribution:
            raise ValueError(
                f"objective=function_matching: compares distributions over classes, and "
                f"{context.task.description.name} predicts numbers; choose objective=mse"
            )

    def forward(self, student: Output, teacher: Output, batch: Batch) -> Loss:
        def distance(logits: Tensor) -> Tensor:
            divergence = kl_divergence(student.prediction, logits, temperature=self.temperature)
            return batch.mean(divergence, mask=student.mask)

        return Loss(teacher.summed(distance))
