"""The Lightning data module over a stream."""

import atexit
import multiprocessing
import signal

import numpy as np
import torch
from lightning import LightningDataModule
from torch.utils.data import DataLoader, Dataset

from funmatch.core.images import Images
from funmatch.data import image_files
from funmatch.data.batch import Batch, Brings
from funmatch.data.sources import Splits
from funmatch.runtime import hardware
from funmatch.views.evaluation_views import EvaluationStream
from funmatch.views.recipes import Recipe
from funmatch.views.repeated import RepeatedSteps
from funmatch.views.stream import Steps, Stream, TruthInView

_PATIENCE = 600.0  # seconds that a worker may take for a batch


class DataModule(LightningDataModule):
    """Streams training batches by step, and evaluation batches in order.

    Args:
        splits: images to train on; evaluation views to val and test on.
        recipe: which view each network gets.
        sides: side of the training view of each network that is asked in training, pixels.
        batch_size: of the global batch.
        steps: length of the run.
        seed: of the run.
        workers: processes that render; 0 renders in the main process.
        brings: what comes from the workers: views; or cuts, for training images that are all kept
            on the device; or files, which are decoded there.
        truth_in_view: of the task: the labels of training views; None: those of the images.
        repeat: train on the batches of the first so many steps over and over; None: never repeat.
    """

    def __init__(
        self,
        splits: Splits,
        recipe: Recipe,
        *,
        sides: dict[str, int],
        batch_size: int,
        steps: int,
        seed: int,
        workers: int = 0,
        brings: Brings = "views",
        truth_in_view: TruthInView | None = None,
        repeat: int | None = None,
    ) -> None:
        super().__init__()
        self._splits, self._recipe = splits, recipe
        self._sides, self._batch_size, self._steps, self._seed = sides, batch_size, steps, seed
        self._workers, self._brings, self._truth_in_view = workers, brings, truth_in_view
        self._repeat = repeat
        self._images: Images | None = None  # all of them, on the device

    def train_dataloader(self) -> DataLoader[Batch]:
        assert self.trainer is not None
        return self.training_loader(start=self.trainer.global_step)  # restored before

    def training_loader(self, *, start: int, steps: int | None = None) -> DataLoader[Batch]:
        """The training batches from a step on, to the end of the run or up to another step."""
        stream = Stream(
            self._splits.train,
            self._recipe,
            sides=self._sides,
            batch_size=self._batch_size,
            seed=self._seed,
            brings=self._brings,
            truth_in_view=self._truth_in_view,
            **self._ranks(),
        )
        repeated = RepeatedSteps(stream, self._repeat) if self._repeat else stream
        return self._loader(repeated, Steps(start, steps or self._steps))

    def val_dataloader(self) -> DataLoader[Batch]:
        return self._evaluation_loader("val")

    def test_dataloader(self) -> DataLoader[Batch]:
        return self._evaluation_loader("test")

    def transfer_batch_to_device(
        self, batch: Batch, device: torch.device, dataloader_idx: int
    ) -> Batch:
        """Copies the batch to the device; views that are left to cut are cut there."""
        there = batch.to(device, non_blocking=True)
        if batch.cuts is None:
            return there
        if batch.files is not None:
            return there.rendered(image_files.on_device(batch.files, device))
        if self._images is None:
            train = self._splits.train
            self._images = train.images(np.arange(len(train))).to(device)
        return there.rendered(self._images.take(batch.cuts.rows))

    def on_after_batch_transfer(self, batch: Batch, dataloader_idx: int) -> Batch:
        """Mixes on the device, where a mixed batch need not be copied to."""
        return batch.mixed()

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

    def _loader(self, stream: Dataset[Batch], steps: Steps | None = None) -> DataLoader[Batch]:
        return DataLoader(
            stream,
            batch_size=None,
            sampler=steps,
            num_workers=self._workers,
            persistent_workers=self._workers > 0,
            pin_memory=torch.cuda.is_available(),
            generator=torch.Generator(),  # else it takes of the noise of the networks
            worker_init_fn=_begin,
            timeout=_PATIENCE if self._workers else 0,
        )


def _begin(number: int) -> None:
    """Of a worker, which ends with its run and not before: the run saves what it is asked to."""
    hardware.end_with_parent(signal.SIGKILL)
    for asked in (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT):
        signal.signal(asked, signal.SIG_IGN)


@atexit.register
def _end() -> None:
    """Ends those that a failed run has left; Python would ask them to, and wait for ever."""
    for worker in multiprocessing.active_children():
        if worker.daemon:
            worker.kill()
