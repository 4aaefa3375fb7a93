"""What it means to match a teacher: one objective, one file.

An objective is an `nn.Module` whose `forward(student, teacher, batch)` returns a `Loss`. It may own
trainable heads, and it names the submodules whose features it wants in `student_features` and
`teacher_features`.
"""

from dataclasses import dataclass, field

from torch import Tensor, nn

from funmatch.data.batch import Batch
from funmatch.models.network import Output


@dataclass
class Loss:
    """What an objective returns.

    Attributes:
        total: scalar, minimised.
        parts: named scalars for the log.
    """

    total: Tensor
    parts: dict[str, Tensor] = field(default_factory=dict)


class Objective(nn.Module):
    """Base of all objectives."""

    student_features: tuple[str, ...] = ()
    teacher_features: tuple[str, ...] = ()

    def forward(self, student: Output, teacher: Output, batch: Batch) -> Loss:
        """Compares the outputs of both networks on one batch."""
        raise NotImplementedError
