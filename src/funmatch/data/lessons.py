"""One stream of batches for several runs that take turns."""

import sys
from collections.abc import Callable, Iterator
from functools import cached_property

import torch
from lightning import LightningDataModule
from torch.utils.data import DataLoader

from funmatch.data.module import DataModule
from funmatch.stream import Batch


class Lessons:
    """The batches of a data module on the device, each made once for all who take its step.

    Args:
        data: makes them.
        device: where they are needed.
    """

    def __init__(self, data: DataModule, device: torch.device) -> None:
        self._data, self._device = data, device
        self._batches: Iterator[Batch] | None = None
        self._last: Batch | None = None

    def batch(self, step: int) -> Batch:
        """The batch of a step; steps are asked for in a rising order."""
        if self._batches is None:
            self._batches = iter(self._data.training_loader(start=step, steps=sys.maxsize))
        while self._last is None or self._last.step < step:
            batch = self._data.transfer_batch_to_device(next(self._batches), self._device, 0)
            self._last = self._data.on_after_batch_transfer(batch, 0)
        assert self._last.step == step
        return self._last

    @cached_property
    def val(self) -> DataLoader[Batch]:
        """The same workers serve all, for nobody waits for a turn in the midst of a validation."""
        return self._data.val_dataloader()

    @cached_property
    def test(self) -> DataLoader[Batch]:
        """Likewise."""
        return self._data.test_dataloader()


class Classmate(LightningDataModule):
    """The data module of one of the runs.

    Args:
        lessons: that they share.
        steps: length of this run.
        wait: returns when it is the turn of this run to take a step.
    """

    def __init__(self, lessons: Lessons, steps: int, wait: Callable[[int], None]) -> None:
        super().__init__()
        self._lessons, self._steps, self._wait = lessons, steps, wait

    def train_dataloader(self) -> "_Paced":
        assert self.trainer is not None
        return _Paced(self._lessons, self.trainer.global_step, self._steps, self._wait)

    def val_dataloader(self) -> DataLoader[Batch]:
        return self._lessons.val

    def test_dataloader(self) -> DataLoader[Batch]:
        return self._lessons.test


class _Paced:
    """Batches from a step to the end, each when it is its turn; its length as of `Steps`."""

    def __init__(
        self, lessons: Lessons, start: int, total: int, wait: Callable[[int], None]
    ) -> None:
        self._lessons, self._start, self._total, self._wait = lessons, start, total, wait

    def __len__(self) -> int:
        return self._total

    def __iter__(self) -> Iterator[Batch]:
        for step in range(self._start, self._total):
            self._wait(step)
            yield self._lessons.batch(step)
