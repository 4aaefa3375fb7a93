"""A progress bar with the time left, and nothing in logs that are not a terminal."""

import time
from functools import partial
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

from funmatch.training.callbacks.stopwatch import Stopwatch

_PAUSE = 0.5  # seconds between two drawings


class ProgressBar(Callback):
    """One line per run: steps done, time left, speed, loss and score, where the time goes.

    Args:
        label: of the run.
        total: steps of the run.
        stopwatch: of the run, called before this.
        score: the metric of the student that is shown, without the split.
    """

    def __init__(self, label: str, total: int, stopwatch: Stopwatch, score: str) -> None:
        self._label, self._total, self._bars = label, total, _bars()
        self._stopwatch, self._drawn, self._task = stopwatch, 0.0, TaskID(-1)
        self._score = f"val/{score}"

    def on_train_start(self, trainer: Trainer, module: LightningModule) -> None:
        done = trainer.global_step
        self._task = self._bars.add_task(self._label, total=self._total, completed=done, figures="")
        if trainer.is_global_zero:
            self._bars.start()

    def on_train_batch_end(self, trainer: Trainer, module: LightningModule, *_: Any) -> None:
        now = time.monotonic()
        if self._bars.disable or now < self._drawn + _PAUSE:
            return
        self._drawn = now
        metrics = trainer.callback_metrics
        names = {"loss": "train/loss", "val": self._score}
        figures = [f"{n} {float(metrics[k]):.3f}" for n, k in names.items() if k in metrics]
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


def _bars() -> Progress:
    console = Console()
    whole = partial(Column, no_wrap=True)  # where there is no room, figures take a second line
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
