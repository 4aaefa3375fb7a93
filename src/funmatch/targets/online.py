"""Teacher targets that are computed for each batch."""

from funmatch.data.batch import Batch
from funmatch.models.network import Output
from funmatch.models.teacher import Teacher
from funmatch.targets.base import Targets


class OnlineTargets(Targets):
    """Computes the teacher's output on its view of the batch."""

    def __init__(self, teacher: Teacher) -> None:
        self._teacher = teacher

    def __call__(self, batch: Batch) -> Output:
        return self._teacher(batch.view)
