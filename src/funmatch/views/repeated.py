"""Overfitting check: the batches of the first steps, repeated."""

from dataclasses import replace

from torch.utils.data import Dataset

from funmatch.data.batch import PlannedBatch, RenderedBatch
from funmatch.views.stream import Stream


class RepeatedSteps(Dataset[PlannedBatch | RenderedBatch]):
    """Item t is the batch of step t mod n, views and mixing included, under the number t.

    It remains a function of (seed, step), so a run resumes exactly.

    Args:
        stream: the batches of a run.
        steps: n, the number of different batches.
    """

    def __init__(self, stream: Stream, steps: int) -> None:
        self._stream, self._steps = stream, steps

    def __getitem__(self, step: int) -> PlannedBatch | RenderedBatch:
        return replace(self._stream[step % self._steps], step=step)
