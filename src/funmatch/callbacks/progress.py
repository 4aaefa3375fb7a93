"""A progress bar with the time left, and nothing in logs that are not a terminal."""

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


class StepsLeft(Callback):
    """One line per run: steps done, speed, time left, loss and validation accuracy.

    Args:
        label: of the run.
        total: steps of the run.
        bars: where the line is drawn, with those of the runs that take turns with this one.
        every: steps between two updates.
    """

    def __init__(self, label: str, total: int, bars: Progress, every: int = 20) -> None:
        self._label, self._total, self._bars, self._every = label, total, bars, every
        self._task = TaskID(-1)

    def on_train_start(self, trainer: Trainer, module: LightningModule) -> None:
        done = trainer.global_step
        self._task = self._bars.add_task(self._label, total=self._total, completed=done, figures="")
        if trainer.is_global_zero:
            self._bars.start()

    def on_train_batch_end(self, trainer: Trainer, module: LightningModule, *_: Any) -> None:
        if trainer.global_step % self._every == 0:
            metrics = trainer.callback_metrics
            names = {"loss": "train/loss", "val": "val/student_top1"}
            figures = [f"{n} {float(metrics[k]):.3f}" for n, k in names.items() if k in metrics]
            (speed,) = (task.speed for task in self._bars.tasks if task.id == self._task)
            if speed:
                figures.insert(0, f"{speed:.0f}/s")
            self._bars.update(self._task, completed=trainer.global_step, figures=" ".join(figures))

    def on_train_end(self, trainer: Trainer, module: LightningModule) -> None:
        self._end()

    def on_exception(self, trainer: Trainer, module: LightningModule, error: BaseException) -> None:
        self._end()

    def _end(self) -> None:
        if self._task in self._bars.task_ids:
            self._bars.remove_task(self._task)
        if not self._bars.task_ids:
            self._bars.stop()


def bars() -> Progress:
    """Where runs that take turns draw their lines."""
    console = Console()
    return Progress(
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
