"""A progress bar with the time left, and nothing in logs that are not a terminal."""

from typing import Any

from lightning import Callback, LightningModule, Trainer
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeRemainingColumn,
)


class StepsLeft(Callback):
    """One line per run: steps done, speed, time left, loss and validation accuracy.

    Args:
        label: of the run.
        total: steps of the run.
        console: where to draw.
        every: steps between two updates.
    """

    def __init__(self, label: str, total: int, console: Console, every: int = 20) -> None:
        self._label, self._total, self._every = label, total, every
        self._bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=None),
            MofNCompleteColumn(),
            TimeRemainingColumn(compact=True),
            TextColumn("left {task.fields[figures]}"),
            expand=True,
            console=console,
            transient=True,
            disable=not console.is_terminal,
        )

    def on_train_start(self, trainer: Trainer, module: LightningModule) -> None:
        done = trainer.global_step
        self._task = self._bar.add_task(self._label, total=self._total, completed=done, figures="")
        if trainer.is_global_zero:
            self._bar.start()

    def on_train_batch_end(self, trainer: Trainer, module: LightningModule, *_: Any) -> None:
        if trainer.global_step % self._every == 0:
            metrics = trainer.callback_metrics
            names = {"loss": "train/loss", "val": "val/student_top1"}
            figures = [f"{n} {float(metrics[k]):.3f}" for n, k in names.items() if k in metrics]
            speed = self._bar.tasks[0].speed
            if speed:
                figures.insert(0, f"{speed:.0f}/s")
            self._bar.update(self._task, completed=trainer.global_step, figures=" ".join(figures))

    def on_train_end(self, trainer: Trainer, module: LightningModule) -> None:
        self._bar.stop()

    def on_exception(self, trainer: Trainer, module: LightningModule, error: BaseException) -> None:
        self._bar.stop()
