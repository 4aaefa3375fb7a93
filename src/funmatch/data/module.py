"""The Lightning data module over a stream."""

import torch
from lightning import LightningDataModule
from torch.utils.data import DataLoader

from funmatch.data.source import Splits
from funmatch.recipes import Recipe
from funmatch.stream import Batch, EvaluationStream, Steps, Stream


class DataModule(LightningDataModule):
    """Streams training batches by step, and evaluation batches in order.

    Args:
        splits: train, val and test.
        recipe: which view each network gets.
        sides: side of the training view of each network that is asked in training, pixels.
        resolution: (resize, side) of the student's evaluation views.
        batch_size: of the global batch.
        steps: length of the run.
        seed: of the run.
        workers: processes that render; 0 renders in the main process.
    """

    def __init__(
        self,
        splits: Splits,
        recipe: Recipe,
        *,
        sides: dict[str, int],
        resolution: tuple[int, int],
        batch_size: int,
        steps: int,
        seed: int,
        workers: int = 0,
    ) -> None:
        super().__init__()
        self._splits, self._recipe = splits, recipe
        self._sides, self._resolution = sides, resolution
        self._batch_size, self._steps, self._seed, self._workers = batch_size, steps, seed, workers

    def train_dataloader(self) -> DataLoader[Batch]:
        stream = Stream(
            self._splits.train,
            self._recipe,
            sides=self._sides,
            batch_size=self._batch_size,
            seed=self._seed,
            **self._ranks(),
        )
        assert self.trainer is not None
        start = self.trainer.global_step  # restored before the loader is asked for
        return self._loader(stream, Steps(start, self._steps))

    def val_dataloader(self) -> DataLoader[Batch]:
        return self._evaluation_loader("val")

    def test_dataloader(self) -> DataLoader[Batch]:
        return self._evaluation_loader("test")

    def on_after_batch_transfer(self, batch: Batch, dataloader_idx: int) -> Batch:
        """Mixes on the device, where a mixed batch need not be copied to."""
        return batch.mixed()

    def _evaluation_loader(self, split: str) -> DataLoader[Batch]:
        stream = EvaluationStream(
            self._splits.part(split),
            {"student": self._resolution},
            batch_size=self._batch_size,
            **self._ranks(),
        )
        return self._loader(stream)

    def _ranks(self) -> dict[str, int]:
        assert self.trainer is not None
        return {"rank": self.trainer.global_rank, "ranks": self.trainer.world_size}

    def _loader(
        self, stream: Stream | EvaluationStream, steps: Steps | None = None
    ) -> DataLoader[Batch]:
        return DataLoader(
            stream,
            batch_size=None,
            sampler=steps,
            num_workers=self._workers,
            persistent_workers=self._workers > 0,
            pin_memory=torch.cuda.is_available(),
        )
