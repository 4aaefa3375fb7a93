"""Checkpoints from which a run goes on exactly, and the atomic way they are written."""

import pickle
import zipfile
from pathlib import Path
from typing import Any

import torch
from lightning import LightningModule, Trainer
from lightning.fabric.plugins import CheckpointIO
from lightning.pytorch.callbacks import Checkpoint

from funmatch import files


class AtomicCheckpointIO(CheckpointIO):
    """Writes in one piece, reads plain types only."""

    def save_checkpoint(
        self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None
    ) -> None:
        files.write(Path(path), lambda file: torch.save(checkpoint, file))

    def load_checkpoint(
        self, path: Any, map_location: Any = "cpu", weights_only: bool | None = True
    ) -> dict[str, Any]:
        # A checkpoint holds tensors, numbers and text; anything else would be foreign code.
        try:
            return torch.load(path, map_location=map_location, weights_only=True)
        except (RuntimeError, EOFError, pickle.UnpicklingError, zipfile.BadZipFile) as error:
            raise ValueError(
                f"{path}: damaged ({type(error).__name__}); start the run anew with resume=never"
            ) from error

    def remove_checkpoint(self, path: Any) -> None:
        Path(path).unlink(missing_ok=True)


class Latest(Checkpoint):
    """Keeps the state of the run after every n-th step, and after the last.

    Args:
        path: of the checkpoint.
        every: steps between two checkpoints.
        validate_every: steps between two validations.
    """

    def __init__(self, path: Path, *, every: int, validate_every: int) -> None:
        self._path, self._every, self._validate_every = path, every, validate_every

    def on_train_batch_end(self, trainer: Trainer, module: LightningModule, *_: Any) -> None:
        # At a validation step it waits for the validation: a resume does not validate again.
        if trainer.global_step % self._every == 0 and not self._validates(trainer):
            trainer.save_checkpoint(self._path)

    def on_validation_end(self, trainer: Trainer, module: LightningModule) -> None:
        if trainer.state.fn == "fit" and trainer.global_step % self._every == 0:
            trainer.save_checkpoint(self._path)

    def on_train_end(self, trainer: Trainer, module: LightningModule) -> None:
        trainer.save_checkpoint(self._path)

    def _validates(self, trainer: Trainer) -> bool:
        return trainer.global_step % self._validate_every == 0
