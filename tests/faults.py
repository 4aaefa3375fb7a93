"""Faults that tests inject into real commands: +callbacks.fault._target_=faults.KillAt ..."""

import os
import signal
from typing import Any

from lightning import Callback, LightningModule, Trainer


class KillAt(Callback):
    """SIGKILL in the middle of a run: nothing can be tidied up."""

    def __init__(self, step: int) -> None:
        self._step = step

    def on_train_batch_end(self, trainer: Trainer, module: LightningModule, *_: Any) -> None:
        if trainer.global_step == self._step:
            os.kill(os.getpid(), signal.SIGKILL)


class FailAt(Callback):
    """An error in the middle of the run with a certain seed."""

    def __init__(self, seed: int) -> None:
        self._seed = seed

    def on_train_batch_end(self, trainer: Trainer, module: LightningModule, *_: Any) -> None:
        if trainer.global_step == 4 and trainer.datamodule._seed == self._seed:
            raise RuntimeError("a fault was injected")
