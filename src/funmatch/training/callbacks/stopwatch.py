"""Stopwatch: the time of a run, by student, teacher and data."""

import time
from typing import Any

from lightning import Callback, LightningModule, Trainer

from funmatch.runtime.timer import Timer


class Stopwatch(Callback):
    """Adds up the time of the training loop, without validations, over all sessions of a run.

    Args:
        batch_size: of the global batch.
        teacher: timer of the teacher's forward passes during training, if there is a teacher.
        before: timer of the teacher's forward passes before the first step.
    """

    def __init__(
        self, batch_size: int, teacher: Timer | None = None, before: Timer | None = None
    ) -> None:
        self.batch_size = batch_size
        self._teacher, self._prepared = teacher or Timer(), before or Timer()
        self._images, self._loop, self._steps = 0, 0.0, 0.0
        self._last = self._begin = 0.0
        self._start, self._before = time.perf_counter(), 0.0

    def on_train_start(self, trainer: Trainer, module: LightningModule) -> None:
        self._last = time.perf_counter()

    def on_train_batch_start(self, *_: Any) -> None:
        self._begin = time.perf_counter()

    def on_train_batch_end(self, *_: Any) -> None:
        now = time.perf_counter()
        self._steps += now - self._begin
        self._loop += now - self._last
        self._images += self.batch_size
        self._last = now

    def on_validation_end(self, trainer: Trainer, module: LightningModule) -> None:
        self._last = time.perf_counter()

    def figures(self) -> dict[str, float]:
        """Throughput of the loop in images/s; seconds of teacher, student and the whole run."""
        teacher = self._teacher.seconds
        return {
            "images_per_second": self._images / self._loop if self._loop else 0.0,
            "teacher_seconds": teacher + self._prepared.seconds,
            "student_seconds": max(self._steps - teacher, 0.0),
            "wall_seconds": self._wall(),
        }

    def shares(self) -> dict[str, float]:
        """Fractions of the loop's time: teacher, student, and waiting for data."""
        teacher, loop = self._teacher.seconds, max(self._loop, 1e-9)
        shares = {"student": max(self._steps - teacher, 0.0) / loop, "data": 1 - self._steps / loop}
        return {"teacher": teacher / loop, **shares} if teacher else shares

    def _wall(self) -> float:
        return self._before + time.perf_counter() - self._start

    def state_dict(self) -> dict[str, Any]:
        return {
            "images": self._images,
            "loop": self._loop,
            "steps": self._steps,
            "teacher": self._teacher.seconds,
            "prepared": self._prepared.seconds,
            "wall": self._wall(),
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._images, self._loop = state_dict["images"], state_dict["loop"]
        self._steps, self._teacher.seconds = state_dict["steps"], state_dict["teacher"]
        self._prepared.seconds += state_dict["prepared"]
        self._before = state_dict["wall"]
