"""Trains a run in this process: by distillation, or from labels."""

from typing import Any

from funmatch.experiment.distill import distill
from funmatch.experiment.experiment import Experiment
from funmatch.experiment.supervise import supervise
from funmatch.runtime import distributed, log


def train_here(experiment: Experiment) -> dict[str, Any]:
    """Trains from the run's last checkpoint to its end; returns its figures."""
    with log.to_file(experiment.run.directory, distributed.rank()):
        if experiment.objective is None:
            return supervise(experiment)
        return distill(experiment, train_here)
