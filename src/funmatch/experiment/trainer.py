"""Builds Lightning's Trainer for an experiment."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lightning import Callback, Trainer
from lightning.fabric.plugins.environments.cluster_environment import ClusterEnvironment
from lightning.fabric.plugins.environments.lightning import LightningEnvironment
from lightning.fabric.plugins.environments.slurm import SLURMEnvironment
from lightning.fabric.plugins.environments.torchelastic import TorchElasticEnvironment
from lightning.pytorch.callbacks import RichModelSummary
from lightning.pytorch.loggers import Logger
from lightning.pytorch.profilers import (
    AdvancedProfiler,
    Profiler,
    PyTorchProfiler,
    SimpleProfiler,
)

from funmatch.experiment.experiment import Experiment
from funmatch.runtime import distributed
from funmatch.runtime.allowlist import instantiate
from funmatch.training.callbacks.checkpoint import VerifiedCheckpointIO

_PROFILERS = {"simple": SimpleProfiler, "advanced": AdvancedProfiler, "pytorch": PyTorchProfiler}


def build_trainer(
    experiment: Experiment,
    callbacks: Sequence[Callback],
    loggers: Sequence[Logger],
) -> Trainer:
    """The Trainer of a run: the arguments that are configured, and those that exact resume decides.

    Args:
        experiment: the run, in whose directory Lightning and user callbacks write too.
        callbacks: all of them, in order.
        loggers: empty but on rank 0.
    """
    given, directory = dict(experiment.trainer), experiment.run.directory
    profiler = _profiler(given.pop("profiler", None), directory)
    given.pop("overfit_batches", None)  # is the stream's
    group = {key: value for key, value in given.items() if value is not None}
    group.setdefault("enable_model_summary", False)
    build = instantiate({**group, "_partial_": True}, "trainer", _convert_="all")
    # Lightning's own would report by a logger that is silenced.
    summary = [RichModelSummary()] if group["enable_model_summary"] else []
    trainer: Trainer = build(
        profiler=profiler,
        max_steps=experiment.steps,
        max_epochs=-1,
        val_check_interval=experiment.validate_every,
        check_val_every_n_epoch=None,
        num_sanity_val_steps=0,
        use_distributed_sampler=False,
        enable_progress_bar=False,  # ours is a callback
        callbacks=[*callbacks, *summary],
        logger=list(loggers),
        plugins=[VerifiedCheckpointIO(), _environment()],
        default_root_dir=directory,
    )
    # Lightning would save within the handler, or not at all; see `runtime.preemption`.
    trainer._signal_connector.register_signal_handlers = lambda: None  # type: ignore[method-assign]
    if trainer.strategy.root_device.type != "cuda":
        # Lightning's way to look for a GPU, for which an optimiser looks in each step: 0.05 ms.
        os.environ.pop("PYTORCH_NVML_BASED_CUDA_CHECK", None)
    return trainer


def _environment() -> ClusterEnvironment:
    # Left to itself, the trainer takes each process of a SLURM job for a rank, and requeues it.
    if TorchElasticEnvironment.detect():
        return TorchElasticEnvironment()
    if distributed.by_srun():
        return SLURMEnvironment(auto_requeue=False)
    return LightningEnvironment()


def _profiler(given: Any, directory: Path) -> Profiler | None:
    """A profiler by name, which reports into the run's directory: fit-profile.txt and so on.

    Lightning's own, by name, would report by a logger that is silenced.
    """
    if given is None:
        return None
    if isinstance(given, str):
        return _PROFILERS[given](dirpath=directory, filename="profile")
    return instantiate(given, "trainer.profiler")
