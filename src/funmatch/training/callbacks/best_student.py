"""The best student so far, judged on val."""

import logging
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
from lightning import Callback, LightningModule, Trainer

from funmatch.runtime import atomic_files
from funmatch.tasks.description import TaskDescription
from funmatch.training.learner import Learner

_log = logging.getLogger(__name__)


def step_of(path: Path) -> int:
    """The step of the best student, from its file; -1 if the file is missing or damaged."""
    try:
        with safetensors.safe_open(path, "pt") as file:
            return int((file.metadata() or {}).get("step", 0))
    except (OSError, safetensors.SafetensorError):
        return -1


class BestStudent(Callback):
    """Writes the student's weights whenever its validation score reaches a new best.

    Attributes:
        score: of the best student.
        step: after which it was written; 0: not yet.
        metric: the name of the score: that of the task, without labels its agreement with the
            teacher, without a teacher too "".

    Args:
        path: of the .safetensors file.
        task: names the score and its direction.
    """

    def __init__(self, path: Path, task: TaskDescription) -> None:
        self._path, self._task = path, task
        self.score, self.step = task.score.worst, 0
        self.metric = ""

    def on_fit_start(self, trainer: Trainer, module: LightningModule) -> None:
        if self.step and self.step > step_of(self._path):
            if trainer.is_global_zero:
                _log.warning(
                    "  %s is missing; the best student is searched from this step on", self._path
                )
            self.score, self.step = self._task.score.worst, 0

    def on_validation_end(self, trainer: Trainer, module: LightningModule) -> None:
        assert isinstance(module, Learner)
        metrics = trainer.callback_metrics
        # Without labels, the most faithful student is the best; without a teacher too, the last.
        known = [
            f for f in (self._task.score, self._task.agreement) if f"val/{f.metric}" in metrics
        ]
        figure = known[0] if known else self._task.score
        score = float(metrics[f"val/{figure.metric}"]) if known else 0.0
        # Of equal scores the later: longer training still brings the student closer to its teacher.
        if not self.step or figure.improves(score, on=self.score):
            self.score, self.step = score, trainer.global_step
            self.metric = figure.metric if known else ""
            if trainer.is_global_zero:
                weights = {
                    name: tensor.contiguous()
                    for name, tensor in module.student.net.state_dict().items()
                }
                metadata = {"step": str(self.step)}
                atomic_files.write(self._path, safetensors.torch.save(weights, metadata))

    def state_dict(self) -> dict[str, Any]:
        return {"score": self.score, "step": self.step, "metric": self.metric}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.score, self.step = state_dict["score"], state_dict["step"]
        self.metric = state_dict["metric"]
