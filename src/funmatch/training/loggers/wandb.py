"""Weights & Biases; without a key or a server it logs offline, and never stops a training."""

import csv
import logging
import os
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from secrets import token_hex
from typing import Any

os.environ.setdefault("WANDB_SILENT", "true")  # this module logs what a user must know
# W&B's telemetry about itself would hold up our exit by 10 s where the server does not answer.
os.environ.setdefault("WANDB_ERROR_REPORTING", "false")

import wandb
from lightning.pytorch.loggers import WandbLogger
from wandb.errors import AuthenticationError, CommError

from funmatch.runs.directory import Run
from funmatch.runtime import atomic_files

_log = logging.getLogger(__name__)

STEP = "trainer/global_step"  # the x-axis of Lightning's logger
_MAX_TABLE_ROWS = 10_000  # more make the browser slow
_MAX_MATRIX_CLASSES = 60  # more make a confusion matrix illegible

# Checked once per process; otherwise each job of a sweep would wait for the server again.
_offline = False


class Wandb(WandbLogger):
    """Lightning's logger with pictures and predictions; its failures never stop a training.

    Args:
        experiment: the W&B run.
        step: optimiser steps already done.
        artifact: upload the best student.
    """

    def __init__(self, experiment: Any, *, step: int = 0, artifact: bool = False) -> None:
        super().__init__(experiment=experiment)
        self._fresh, self._artifact, self._lost = step == 0, artifact, False

    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        self._unless_lost(lambda: super(Wandb, self).log_metrics(metrics, step))

    def begin(self, run: Run) -> None:
        """Shows what the networks see in the first step."""
        if self._fresh and run.views.exists():
            picture = wandb.Image(str(run.views))
            self._unless_lost(lambda: self.experiment.log({"views": picture, STEP: 0}))

    def conclude(self, run: Run, classes: Sequence[str], figures: Mapping[str, Any]) -> None:
        """Logs figures and predictions on test; uploads the best student if requested."""
        self._unless_lost(lambda: self._conclude(run, classes, figures))

    def _conclude(self, run: Run, classes: Sequence[str], figures: Mapping[str, Any]) -> None:
        length = {key: run.result[key] for key in ("epochs", "steps")}
        self.experiment.summary.update({**length, **figures})  # as in summary.csv
        with run.predictions.open(newline="") as file:
            columns, *rows = csv.reader(file)
        shown: dict[str, Any] = {
            "test/predictions": wandb.Table(columns=[*columns], data=rows[:_MAX_TABLE_ROWS])
        }
        predicted = dict(zip(columns, zip(*rows, strict=True), strict=True))
        for other in ("label", "teacher"):
            known = all(predicted[other]) and all(predicted["student"])
            if known and 0 < len(classes) <= _MAX_MATRIX_CLASSES:
                shown[f"test/student_against_{other}"] = wandb.plot.confusion_matrix(
                    y_true=[int(each) for each in predicted[other]],
                    preds=[int(each) for each in predicted["student"]],
                    class_names=list(classes),
                    title=f"the student's predictions against those of the {other}",
                )
        self.experiment.log(shown)
        if self._artifact:
            artifact = wandb.Artifact(f"student-{run.directory.name}", type="model")
            for path in (run.student, run.model, run.summary):
                if path.exists():
                    artifact.add_file(str(path))
            self.experiment.log_artifact(artifact)

    def close(self, *, failed: bool) -> None:
        """Ends the W&B run of this process, so that the next job does not log into it."""
        self._unless_lost(lambda: self.experiment.finish(exit_code=1 if failed else 0))

    def _unless_lost(self, call: Callable[[], object]) -> None:
        """Calls W&B until it fails: SLURM's signals also reach, and end, its own process."""
        if self._lost:
            return
        try:
            call()
        except Exception as error:  # W&B raises many types
            self._lost = True
            kind = type(error).__name__
            _log.warning("W&B: its process has ended (%s); metrics.csv continues", kind)
            with suppress(Exception):  # so that it prints nothing at exit
                wandb.teardown(exit_code=1)


def start(
    run: Run,
    *,
    step: int,
    config: Mapping[str, Any],
    project: str,
    group: str,
    job_type: str,
    tags: Sequence[str] = (),
    artifact: bool = False,
    timeout: float = 10.0,
    patience: float = 120.0,
) -> Wandb:
    """Returns the logger of a run; a resumed run continues its W&B run.

    Args:
        run: offline records are in the `wandb` folder of its directory.
        step: optimiser steps already done.
        config: the configuration, plain values.
        project: in W&B.
        group: of the runs of one sweep.
        job_type: the recipe.
        tags: tags to filter runs by.
        artifact: upload the best student.
        timeout: seconds to reach the server, before logging offline.
        patience: seconds to finish uploads at the end; `wandb sync` can do it later.
    """
    directory = run.directory
    init = partial(
        wandb.init,
        dir=str(directory),
        config=dict(config),
        project=project,
        group=group,
        job_type=job_type,
        tags=list(tags),
        name=directory.name,
        id=atomic_files.write_once(run.tracker_id, lambda: token_hex(8).encode()).decode(),
        resume="allow",
        settings=wandb.Settings(
            init_timeout=timeout,
            finish_timeout=patience,
            console="off",
            silent=True,
            reinit="create_new",
        ),
    )
    return Wandb(_initialised(init, directory, timeout), step=step, artifact=artifact)


def _initialised(init: Callable[..., Any], directory: Path, timeout: float) -> Any:
    """The W&B run: in the mode of WANDB_MODE if set, else online if possible, else offline."""
    if "WANDB_MODE" in os.environ:
        return init()
    if not _offline:
        try:
            # Verifying the key would wait for the server without a limit of ours.
            if wandb.login(prompt=False, verify=False):
                online = init(mode="online")
                _log.info("W&B: %s", online.url)
                return online
            _go_offline(directory, "no API key")
        except CommError:
            wandb.teardown(exit_code=1)  # else W&B holds on to the id of the run
            _go_offline(directory, f"the server did not answer within {timeout:g} s")
        except AuthenticationError as error:
            _go_offline(directory, f"the API key was refused: {error}")
    return init(mode="offline")


def _go_offline(directory: Path, reason: str) -> None:
    global _offline
    _offline = True
    _log.warning(
        f"W&B logs offline ({reason}); to upload later: "
        f"wandb sync {directory.parent}/*/wandb/offline-run-*"
    )
