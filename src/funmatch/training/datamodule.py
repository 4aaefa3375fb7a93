"""The Lightning data module over a stream."""

import atexit
import multiprocessing
import signal
from typing import TypeVar

import numpy as np
import torch
from lightning import LightningDataModule
from torch.utils.data import DataLoader, Dataset

from funmatch.core.images import Images
from funmatch.data import image_files
from funmatch.data.batch import Batch, PlannedBatch, RenderedBatch
from funmatch.data.sources import Splits
from funmatch.runtime import hardware
from funmatch.views.evaluation_views import EvaluationStream
from funmatch.views.repeated import RepeatedSteps
from funmatch.views.stream import BatchDrawer, Steps, Stream

_WORKER_TIMEOUT_S = 600.0  # for one batch

B = TypeVar("B", PlannedBatch | RenderedBatch, Batch)


class DataModule(LightningDataModule):
    """Streams training batches by step, and evaluation batches in order.

    Args:
        splits: training images, and the evaluation views of val and test.
        views: draws the training views of `splits.train`.
        batch_size: number of examples in the global batch, over all ranks.
        steps: length of the run, in optimiser steps.
        seed: the key `seed`; order and views are functions of it and the step.
        workers: processes that render; 0 renders in the main process.
        repeat: repeat the batches of the first `repeat` steps for ever; None: never repeat.
    """

    def __init__(
        self,
        splits: Splits,
        views: BatchDrawer,
        *,
        batch_size: int,
        steps: int,
        seed: int,
        workers: int = 0,
        repeat: int | None = None,
    ) -> None:
        super().__init__()
        self._splits, self._views = splits, views
        self._batch_size, self._steps, self._seed = batch_size, steps, seed
        self._workers, self._repeat = workers, repeat
        self._images: Images | None = None  # all of them, on the device

    def train_dataloader(self) -> DataLoader[PlannedBatch | RenderedBatch]:
        assert self.trainer is not None
        return self.training_loader(start=self.trainer.global_step)  # restored before

    def training_loader(
        self, *, start: int, steps: int | None = None
    ) -> DataLoader[PlannedBatch | RenderedBatch]:
        """Loader of the training batches from step `start` up to `steps`, or the end of the run."""
        stream = Stream(self._views, batch_size=self._batch_size, seed=self._seed, **self._ranks())
        repeated = RepeatedSteps(stream, self._repeat) if self._repeat else stream
        return self._loader(repeated, Steps(start, steps or self._steps))

    def val_dataloader(self) -> DataLoader[Batch]:
        return self._evaluation_loader("val")

    def test_dataloader(self) -> DataLoader[Batch]:
        return self._evaluation_loader("test")

    def transfer_batch_to_device(
        self, batch: PlannedBatch | RenderedBatch | Batch, device: torch.device, dataloader_idx: int
    ) -> RenderedBatch | Batch:
        """Copies the batch to the device; views that no worker has rendered are rendered there."""
        if isinstance(batch, PlannedBatch):
            batch = batch.rendered(self._images_on(device, batch))
        return batch.to(device, non_blocking=True)

    def on_after_batch_transfer(self, batch: RenderedBatch | Batch, dataloader_idx: int) -> Batch:
        """Mixes on the device: uint8 views are a quarter of the copy that mixed ones would be."""
        return batch.mixed() if isinstance(batch, RenderedBatch) else batch

    def _images_on(self, device: torch.device, batch: PlannedBatch) -> Images:
        """The decoded images of a batch on the device, where all training images may be already."""
        if batch.files is not None:
            return image_files.on_device(batch.files, device)
        if self._images is None:
            train = self._splits.train
            self._images = train.images(np.arange(len(train))).to(device)
        return self._images.take(batch.index.numpy())

    def _evaluation_loader(self, split: str) -> DataLoader[Batch]:
        stream = EvaluationStream(
            self._splits.part(split),
            batch_size=self._batch_size,
            **self._ranks(),
        )
        return self._loader(stream)

    def _ranks(self) -> dict[str, int]:
        if self.trainer is None:
            return {"rank": 0, "ranks": 1}
        return {"rank": self.trainer.global_rank, "ranks": self.trainer.world_size}

    def _loader(self, stream: Dataset[B], steps: Steps | None = None) -> DataLoader[B]:
        return DataLoader(
            stream,
            batch_size=None,
            sampler=steps,
            num_workers=self._workers,
            persistent_workers=self._workers > 0,
            pin_memory=torch.cuda.is_available(),
            generator=torch.Generator(),  # else it advances the generator of the networks' noise
            worker_init_fn=_begin,
            timeout=_WORKER_TIMEOUT_S if self._workers else 0,
        )


def _begin(number: int) -> None:
    """Start of a worker: it ends with its run, and ignores the signals on which the run saves."""
    hardware.end_with_parent(signal.SIGKILL)
    for ignored in (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT):
        signal.signal(ignored, signal.SIG_IGN)


@atexit.register
def _end() -> None:
    """Kills the workers of a failed run; Python would send SIGTERM and wait for ever."""
    for worker in multiprocessing.active_children():
        if worker.daemon:
            worker.kill()
