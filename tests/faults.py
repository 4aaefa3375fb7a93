"""Faults that tests inject into real commands: +callbacks.fault._target_=faults.KillAt ..."""

import multiprocessing
import os
import signal
import time
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


class Slow(Callback):
    """Steps that take their time, so that a signal comes in the midst of a run."""

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds

    def on_train_batch_start(self, *_: Any) -> None:
        time.sleep(self._seconds)


class NoNumber(Callback):
    """A loss that is no number, on one rank, at some steps."""

    def __init__(self, steps: list[int], rank: int = 0) -> None:
        self._steps, self._rank = set(steps), rank

    def on_train_batch_start(self, trainer: Trainer, module: LightningModule, *_: Any) -> None:
        if trainer.global_rank == self._rank and trainer.global_step + 1 in self._steps:
            loss = module.loss

            def broken(batch: Any) -> Any:
                del module.loss  # once: the method of the class is there again
                total, parts = loss(batch)
                return total * float("nan"), parts

            module.loss = broken


class KillWorker(Callback):
    """Kills a process that renders, as a machine without memory does."""

    def __init__(self, step: int) -> None:
        self._step = step

    def on_train_batch_end(self, trainer: Trainer, module: LightningModule, *_: Any) -> None:
        if trainer.global_step == self._step:
            os.kill(multiprocessing.active_children()[0].pid, signal.SIGKILL)
