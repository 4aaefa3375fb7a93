"""Faults that tests inject into real commands: +callbacks.fault._target_=faults.SignalAt ..."""

import hashlib
import json
import multiprocessing
import os
import random
import signal
import threading
import time
from pathlib import Path
from typing import Any

from lightning import Callback, LightningModule, Trainer


def inject(name: str, **settings: Any) -> list[str]:
    """The overrides of a command that let a fault happen."""
    given = {"_target_": f"faults.{name}", **settings}
    return [f"+callbacks.{name}.{key}={value}" for key, value in given.items()]


class SignalAt(Callback):
    """A signal to this process after a step."""

    def __init__(self, step: int, number: int = signal.SIGKILL, rank: int = 0) -> None:
        self._step, self._number, self._rank = step, number, rank

    def on_train_batch_end(self, trainer: Trainer, module: LightningModule, *_: Any) -> None:
        if (trainer.global_step, trainer.global_rank) == (self._step, self._rank):
            os.kill(os.getpid(), self._number)


class KillSoon(Callback):
    """SIGKILL at a random moment after training has begun, wherever the program is then."""

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds

    def on_train_start(self, trainer: Trainer, module: LightningModule) -> None:
        wait = random.uniform(0, self._seconds)
        threading.Timer(wait, os.kill, (os.getpid(), signal.SIGKILL)).start()


class FailAt(Callback):
    """An error in the middle of the run with a certain seed."""

    def __init__(self, seed: int, rank: int = 0) -> None:
        self._seed, self._rank = seed, rank

    def on_train_batch_end(self, trainer: Trainer, module: LightningModule, *_: Any) -> None:
        at = trainer.global_step, trainer.global_rank, trainer.datamodule._seed
        if at == (4, self._rank, self._seed):
            raise RuntimeError("a fault was injected")


class FailWhile(Callback):
    """An error as long as a file is there: a cause that somebody mends."""

    def __init__(self, path: str) -> None:
        self._path = Path(path)

    def on_train_start(self, trainer: Trainer, module: LightningModule) -> None:
        if self._path.exists():
            raise RuntimeError("a fault was injected")


class Slow(Callback):
    """Steps that take their time, so that a signal comes in the midst of a run."""

    def __init__(self, seconds: float, after: int = 0) -> None:
        self._seconds, self._after = seconds, after

    def on_train_batch_start(self, trainer: Trainer, *_: Any) -> None:
        if trainer.global_step >= self._after:
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


class Witness(Callback):
    """Writes down what each rank is shown, row by row, and the weights that it has after a step.

    Args:
        path: of a folder.
    """

    def __init__(self, path: str) -> None:
        self._path = Path(path)

    def on_train_batch_start(
        self, trainer: Trainer, module: LightningModule, batch: Any, *_: Any
    ) -> None:
        views = batch.view("student").cpu().numpy()
        for row, (index, view) in enumerate(zip(batch.index.tolist(), views, strict=True)):
            digest = hashlib.sha256(view.tobytes()).hexdigest()[:16]
            self._write(trainer, "views", [batch.step, batch.first + row, index, digest])

    def on_train_batch_end(self, trainer: Trainer, module: LightningModule, *_: Any) -> None:
        digest = hashlib.sha256()
        for parameter in module.parameters():
            digest.update(parameter.detach().cpu().numpy().tobytes())
        self._write(trainer, "weights", [trainer.global_step, digest.hexdigest()[:16]])

    def _write(self, trainer: Trainer, name: str, row: list[Any]) -> None:
        self._path.mkdir(exist_ok=True)
        with (self._path / f"{name}-{trainer.global_rank}.jsonl").open("a") as file:
            file.write(json.dumps(row) + "\n")


def witnessed(path: Path, name: str, rank: int | str = "*") -> list[list[Any]]:
    """What was written down, of one rank or of all, in order of steps and rows."""
    text = "".join(file.read_text() for file in path.glob(f"{name}-{rank}.jsonl"))
    return sorted(map(json.loads, text.splitlines()))
