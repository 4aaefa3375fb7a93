"""MLflow: a local store of files, or a tracking server."""

import logging
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from lightning.pytorch.loggers import MLFlowLogger

from funmatch.config.errors import UserError
from funmatch.runs.directory import Run
from funmatch.runtime import atomic_files

_log = logging.getLogger(__name__)

# A server that does not answer is tried again for minutes by default, in each request.
os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")
# Newer releases of MLflow open a store of files only if this says so.
os.environ.setdefault("MLFLOW_ALLOW_FILE_STORE", "true")


class MLflow(MLFlowLogger):
    """Lightning's logger; if its store fails during training, it warns and training continues.

    Args:
        resumed: the MLflow run was created before and is continued.
        settings: arguments of Lightning's MLFlowLogger.
    """

    def __init__(self, *, resumed: bool, **settings: Any) -> None:
        super().__init__(**settings)
        self._resumed, self._lost = resumed, False

    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        self._unless_lost(lambda: super(MLflow, self).log_metrics(metrics, step))

    def finalize(self, status: str = "success") -> None:
        """Does nothing: Lightning calls it after training; `close` ends the run after the test."""

    def begin(self, run: Run) -> None:
        """Logs the picture of the views of the first step."""
        if not self._resumed and run.views.exists():
            self._unless_lost(lambda: self.experiment.log_artifact(self.run_id, str(run.views)))

    def conclude(self, run: Run, classes: Sequence[str], figures: Mapping[str, Any]) -> None:
        """Logs the figures of the summary, and the predictions on test."""
        numbers = {
            f"summary/{name}": float(value)
            for name, value in figures.items()
            if isinstance(value, int | float)
        }
        self.log_metrics(numbers, run.result["steps"])
        self._unless_lost(lambda: self.experiment.log_artifact(self.run_id, str(run.predictions)))

    def close(self, *, failed: bool) -> None:
        """Ends the MLflow run; resuming the run opens it again."""
        self._unless_lost(lambda: super(MLflow, self).finalize("failed" if failed else "success"))

    def _unless_lost(self, call: Callable[[], object]) -> None:
        if self._lost:
            return
        try:
            call()
        except Exception as error:  # store, disk and network raise many types
            self._lost = True
            reason = " ".join(str(error).split())[:160]
            _log.warning("MLflow: logging stopped (%s); metrics.csv continues", reason)


def start(
    run: Run,
    *,
    step: int,
    config: Mapping[str, Any],
    group: str,
    job_type: str,
    tags: Sequence[str] = (),
    experiment: str | None = None,
    tracking_uri: str,
) -> MLflow:
    """Returns the logger of a run; a resumed run continues its MLflow run.

    Args:
        run: its directory keeps the id of the MLflow run.
        step: optimiser steps already done.
        config: the configuration, logged as parameters.
        group: name of the sweep, logged as a tag.
        job_type: the recipe, logged as a tag.
        tags: "data=digits" becomes the tag `data`.
        experiment: name of the MLflow experiment; None: the group.
        tracking_uri: file:FOLDER, or the address of a server.

    Raises:
        ValueError: MLflow is not installed.
        UserError: the store cannot be opened.
    """
    named = dict(tag.split("=", 1) for tag in tags if "=" in tag)
    id_file = run.mlflow_id
    known = id_file.read_text() if id_file.exists() else None
    if tracking_uri.startswith("file:"):
        tracking_uri = Path(tracking_uri.removeprefix("file:")).absolute().as_uri()
    logging.getLogger("mlflow").setLevel(logging.WARNING)
    try:
        logger = MLflow(
            resumed=known is not None,
            experiment_name=experiment or group,
            run_name=run.directory.name,
            tracking_uri=tracking_uri,
            tags={**named, "recipe": job_type, "group": group},
            run_id=known,
        )
        if known is None:  # the first use of the store, which opens it
            atomic_files.write(id_file, str(logger.run_id))
            logger.log_hyperparams(dict(config))
        else:
            logger.experiment.update_run(known, status="RUNNING")
    except ModuleNotFoundError as error:
        remedy = "pip install 'funmatch[mlflow]'"
        raise ValueError(f"logger=mlflow: mlflow is not installed; {remedy}") from error
    except Exception as error:  # store, disk and network raise many types
        reason = " ".join(str(error).split())[:160]
        raise UserError(
            f"logger.mlflow.tracking_uri={tracking_uri}: {reason}; give another, or logger=none"
        ) from error
    return logger
