"""Checkpoints from which a run resumes exactly, and preemption after a checkpoint."""

import pickle
from pathlib import Path
from typing import Any

import torch
from lightning import LightningModule, Trainer
from lightning.fabric.plugins import CheckpointIO
from lightning.pytorch.callbacks import Checkpoint
from torch import Tensor

from funmatch.runs import checkpoint_files
from funmatch.runs.checkpoint_files import Checkpoints
from funmatch.runtime import hardware
from funmatch.runtime.all_reduce import AsyncAllReduceMax
from funmatch.runtime.preemption import STOP, Interrupted

_MOMENTS = 2  # per weight, in the state of an optimiser like Adam


class VerifiedCheckpointIO(CheckpointIO):
    """Writes a checkpoint atomically and with a digest; reads plain types only."""

    def save_checkpoint(
        self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None
    ) -> None:
        try:
            checkpoint_files.write(Path(path), lambda file: torch.save(checkpoint, file))
        except (OSError, RuntimeError) as error:  # torch raises the latter for a full disk
            if str(error).startswith("DataLoader "):  # a worker has died meanwhile
                raise
            reason = getattr(error, "strerror", None) or " ".join(str(error).split())[:120]
            raise ValueError(
                f"{path}: could not be written ({reason}); make room, the same command "
                "resumes from the previous checkpoint"
            ) from error

    def load_checkpoint(
        self, path: Any, map_location: Any = "cpu", weights_only: bool | None = True
    ) -> dict[str, Any]:
        # A checkpoint holds tensors, numbers and text; anything else would be foreign code.
        try:
            return torch.load(path, map_location=map_location, weights_only=True)
        except (RuntimeError, EOFError, pickle.UnpicklingError) as error:
            raise ValueError(
                f"{path}: refused, it contains more than tensors, numbers and text "
                f"({type(error).__name__}); restart the run with resume=never"
            ) from error

    def remove_checkpoint(self, path: Any) -> None:
        Path(path).unlink(missing_ok=True)


class PeriodicCheckpoint(Checkpoint):
    """Saves the state of the run after every n-th step, after the last, and before preemption.

    A signal to any of its ranks, or the time limit, stops a run: all ranks after the same step.

    Args:
        folder: folder of the checkpoints.
        every: steps between two checkpoints.
        keep: number of checkpoints that are kept.
        validate_every: steps between two validations.
        total: steps of the run.
    """

    def __init__(
        self, folder: Checkpoints, *, every: int, keep: int, validate_every: int, total: int
    ) -> None:
        self._folder, self._every, self._keep = folder, every, keep
        self._validate_every, self._total = validate_every, total
        self._stop_request, self._read_back = AsyncAllReduceMax(), False
        self._exit_code = 0

    def on_train_start(self, trainer: Trainer, module: LightningModule) -> None:
        self._stop_request.start(trainer.world_size)
        if trainer.is_global_zero:
            self._check_disk_space(module)

    def on_train_batch_end(self, trainer: Trainer, module: LightningModule, *_: Any) -> None:
        self._exit_code = self._stop_request.reduce(STOP.code)
        # At a validation step it waits for the validation: a resume does not validate again.
        if trainer.global_step % self._validate_every:
            self._save_or_stop(trainer)

    def on_validation_end(self, trainer: Trainer, module: LightningModule) -> None:
        if trainer.state.fn == "fit":
            self._save_or_stop(trainer)

    def on_train_end(self, trainer: Trainer, module: LightningModule) -> None:
        self._save(trainer)
        self._stop_request.reduce(STOP.code)
        self._exit_code = (
            self._stop_request.end()
        )  # requests during the last step, the same on all ranks
        if self._exit_code:
            self._stop(trainer)

    def _save_or_stop(self, trainer: Trainer) -> None:
        if self._exit_code or trainer.global_step % self._every == 0:
            self._save(trainer)
        if self._exit_code:
            self._stop_request.end()
            self._stop(trainer)

    def _stop(self, trainer: Trainer) -> None:
        saved = f"saved after step {trainer.global_step} of {self._total}"
        raise Interrupted(STOP.reason or "another rank", self._exit_code, saved)

    def _save(self, trainer: Trainer) -> None:
        path = self._folder.path(trainer.global_step)
        trainer.save_checkpoint(path)
        if trainer.is_global_zero:
            self._folder.keep(self._keep)
            if not self._read_back:  # an unreadable checkpoint must be noticed at once
                VerifiedCheckpointIO().load_checkpoint(path)
                self._read_back = True

    def _check_disk_space(self, module: LightningModule) -> None:
        """Refuses to start a run whose checkpoints would not fit on the disk."""
        state = sum(t.nbytes for t in module.state_dict().values() if isinstance(t, Tensor))
        # All checkpoints that are kept, the one that is being written, and the best student.
        needed = state * (1 + _MOMENTS) * (self._keep + 1) + state
        reused = sum(path.stat().st_size for path in self._folder.all())
        free = hardware.free_disk_space(self._folder.folder) + reused
        if needed > free:
            raise ValueError(
                f"paths.logs: {self._keep + 1} checkpoints take about {needed / 1e9:.2g} GB, "
                f"{free / 1e9:.2g} GB are free in {self._folder.folder}; make room, give another "
                "paths.logs, or a lower checkpoint_keep"
            )
