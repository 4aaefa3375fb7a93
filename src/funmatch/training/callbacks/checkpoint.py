"""Checkpoints from which a run goes on exactly, and leaving a run where it can go on."""

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

_MOMENTS = 2  # that an optimiser like Adam keeps of each weight


class VerifiedCheckpointIO(CheckpointIO):
    """Writes in one piece and with a seal, reads plain types only."""

    def save_checkpoint(
        self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None
    ) -> None:
        try:
            checkpoint_files.write(Path(path), lambda file: torch.save(checkpoint, file))
        except (OSError, RuntimeError) as error:  # torch makes the latter of a full disk
            if str(error).startswith("DataLoader "):  # a worker has died meanwhile
                raise
            reason = getattr(error, "strerror", None) or " ".join(str(error).split())[:120]
            raise ValueError(
                f"{path}: could not be written ({reason}); make room, the same command goes on "
                "from the checkpoint before"
            ) from error

    def load_checkpoint(
        self, path: Any, map_location: Any = "cpu", weights_only: bool | None = True
    ) -> dict[str, Any]:
        # A checkpoint holds tensors, numbers and text; anything else would be foreign code.
        try:
            return torch.load(path, map_location=map_location, weights_only=True)
        except (RuntimeError, EOFError, pickle.UnpicklingError) as error:
            raise ValueError(
                f"{path}: refused, it holds other things than tensors, numbers and text "
                f"({type(error).__name__}); start the run anew with resume=never"
            ) from error

    def remove_checkpoint(self, path: Any) -> None:
        Path(path).unlink(missing_ok=True)


class PeriodicCheckpoint(Checkpoint):
    """Keeps the state of the run after every n-th step, after the last, and before it is left.

    A run is left when a signal or the clock asks any of its ranks for it: all of them after the
    same step.

    Args:
        folder: of the checkpoints.
        every: steps between two checkpoints.
        keep: how many of them.
        validate_every: steps between two validations.
        total: steps of the run.
    """

    def __init__(
        self, folder: Checkpoints, *, every: int, keep: int, validate_every: int, total: int
    ) -> None:
        self._folder, self._every, self._keep = folder, every, keep
        self._validate_every, self._total = validate_every, total
        self._consensus, self._read_back = AsyncAllReduceMax(), False
        self._leaving = 0

    def on_train_start(self, trainer: Trainer, module: LightningModule) -> None:
        self._consensus.start(trainer.world_size)
        if trainer.is_global_zero:
            self._ask_for_room(module)

    def on_train_batch_end(self, trainer: Trainer, module: LightningModule, *_: Any) -> None:
        self._leaving = self._consensus.reduce(STOP.code)
        # At a validation step it waits for the validation: a resume does not validate again.
        if trainer.global_step % self._validate_every:
            self._save_or_leave(trainer)

    def on_validation_end(self, trainer: Trainer, module: LightningModule) -> None:
        if trainer.state.fn == "fit":
            self._save_or_leave(trainer)

    def on_train_end(self, trainer: Trainer, module: LightningModule) -> None:
        self._save(trainer)
        self._consensus.reduce(STOP.code)
        self._leaving = self._consensus.end()  # what came with the last step, known to all
        if self._leaving:
            self._leave(trainer)

    def _save_or_leave(self, trainer: Trainer) -> None:
        if self._leaving or trainer.global_step % self._every == 0:
            self._save(trainer)
        if self._leaving:
            self._consensus.end()
            self._leave(trainer)

    def _leave(self, trainer: Trainer) -> None:
        place = f"saved after step {trainer.global_step} of {self._total}"
        raise Interrupted(STOP.reason or "another rank", self._leaving, place)

    def _save(self, trainer: Trainer) -> None:
        path = self._folder.path(trainer.global_step)
        trainer.save_checkpoint(path)
        if trainer.is_global_zero:
            self._folder.keep(self._keep)
            if not self._read_back:  # what cannot be read is to be found out at once
                VerifiedCheckpointIO().load_checkpoint(path)
                self._read_back = True

    def _ask_for_room(self, module: LightningModule) -> None:
        """Refuses to begin what could not be saved."""
        state = sum(t.nbytes for t in module.state_dict().values() if isinstance(t, Tensor))
        # All that are kept, the one that is being written, and the best student.
        needed = state * (1 + _MOMENTS) * (self._keep + 1) + state
        here = sum(path.stat().st_size for path in self._folder.all())
        free = hardware.free_disk_space(self._folder.folder) + here
        if needed > free:
            raise ValueError(
                f"paths.logs: {self._keep + 1} checkpoints take about {needed / 1e9:.2g} GB, "
                f"{free / 1e9:.2g} GB are free in {self._folder.folder}; make room, give another "
                "paths.logs, or a lower checkpoint_keep"
            )
