"""Progress of a run: a bar on a terminal, and a line at intervals in logs."""

import logging
import time
from functools import partial
from pathlib import Path
from typing import Any

from lightning import Callback, LightningModule, Trainer
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeRemainingColumn,
)
from rich.table import Column

from funmatch.runtime import log
from funmatch.training.callbacks.stopwatch import Stopwatch
from funmatch.training.learner import Learner

_log = logging.getLogger(__name__)


class ProgressBar(Callback):
    """One line per run: steps, remaining time, speed, loss and score, shares of the time.

    Shown on a terminal only.

    Args:
        refresh_s: seconds between two drawings.
    """

    def __init__(self, refresh_s: float = 0.5) -> None:
        self._refresh_s, self._bars, self._drawn, self._task = refresh_s, _bars(), 0.0, TaskID(-1)

    def on_train_start(self, trainer: Trainer, module: LightningModule) -> None:
        self._stopwatch = _stopwatch(trainer)
        label = "-".join(Path(trainer.default_root_dir).name.rsplit("-", 2)[1:])  # seed, hash
        self._task = self._bars.add_task(
            label, total=trainer.max_steps, completed=trainer.global_step, figures=""
        )
        if trainer.is_global_zero:
            self._bars.start()

    def on_train_batch_end(self, trainer: Trainer, module: LightningModule, *_: Any) -> None:
        now = time.monotonic()
        if self._bars.disable or now < self._drawn + self._refresh_s:
            return
        self._drawn = now
        figures = _figures(trainer, module)
        if speed := self._bars.tasks[0].speed:
            figures.insert(0, f"{speed * self._stopwatch.batch_size:,.0f} img/s")
        figures += [f"{part} {share:.0%}" for part, share in self._stopwatch.shares().items()]
        self._bars.update(self._task, completed=trainer.global_step, figures=" ".join(figures))

    def on_train_end(self, trainer: Trainer, module: LightningModule) -> None:
        self._end()

    def on_exception(self, trainer: Trainer, module: LightningModule, error: BaseException) -> None:
        self._end()

    def _end(self) -> None:
        self._bars.stop()


class ProgressLog(Callback):
    """Logs a line at intervals: steps, images per second, loss and score, remaining time.

    In run.log, and on stdout if that is no terminal and so has no progress bar.

    Args:
        every_s: seconds before the first line and between two lines, validations included.
    """

    def __init__(self, every_s: float = 60.0) -> None:
        self._every_s = every_s
        self._more = log.FILE_ONLY if Console().is_terminal else None

    def on_train_start(self, trainer: Trainer, module: LightningModule) -> None:
        self._batch_size = _stopwatch(trainer).batch_size
        self._start = self._last = (time.monotonic(), trainer.global_step)

    def on_train_batch_end(self, trainer: Trainer, module: LightningModule, *_: Any) -> None:
        now, step = time.monotonic(), trainer.global_step
        before, last_step = self._last
        if now < before + self._every_s or not trainer.is_global_zero:
            return
        start, first_step = self._start
        speed = (step - last_step) / (now - before) * self._batch_size
        remaining = (trainer.max_steps - step) * (now - start) / max(step - first_step, 1)
        parts = [f"step {step:,} of {trainer.max_steps:,}", f"{speed:,.0f} img/s"]
        parts += [*_figures(trainer, module), f"{_duration(remaining)} left"]
        _log.info("  %s", ", ".join(parts), extra=self._more)
        self._last = (now, step)


def _stopwatch(trainer: Trainer) -> Stopwatch:
    return next(c for c in trainer.callbacks if isinstance(c, Stopwatch))  # type: ignore[attr-defined]


def _figures(trainer: Trainer, module: LightningModule) -> list[str]:
    assert isinstance(module, Learner)
    metrics = trainer.callback_metrics
    names = {"loss": "train/loss", "val": f"val/{module.task.description.score.metric}"}
    return [f"{name} {float(metrics[key]):.3f}" for name, key in names.items() if key in metrics]


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02}:{rest:02}"


def _bars() -> Progress:
    console = Console()
    whole = partial(Column, no_wrap=True)  # in a narrow terminal, figures take a second line
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(bar_width=console.width // 7, table_column=whole()),
        MofNCompleteColumn(table_column=whole()),
        TimeRemainingColumn(compact=True, table_column=whole()),
        TextColumn("left {task.fields[figures]}", table_column=Column()),
        console=console,
        transient=True,
        disable=not console.is_terminal,
    )
