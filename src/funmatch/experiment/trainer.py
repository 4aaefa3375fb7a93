"""Builds Lightning's Trainer from the `trainer` group of a configuration."""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
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
from omegaconf import DictConfig, OmegaConf

from funmatch.runtime import distributed
from funmatch.runtime.allowlist import instantiate
from funmatch.training.callbacks.checkpoint import VerifiedCheckpointIO

_PROFILERS = {"simple": SimpleProfiler, "advanced": AdvancedProfiler, "pytorch": PyTorchProfiler}


def build_trainer(
    cfg: DictConfig,
    directory: Path,
    steps: int,
    callbacks: Sequence[Callback],
    loggers: Sequence[Logger],
) -> Trainer:
    """The Trainer of a run: the arguments of `cfg.trainer`, and those that exact resume decides.

    Args:
        cfg: of the run, checked by `trainer_arguments`.
        directory: of the run, where Lightning and user callbacks write what has no other place.
        steps: length of the run.
        callbacks: all of them, in order.
        loggers: empty but on rank 0.
    """
    given: Any = OmegaConf.to_container(cfg.trainer, resolve=True)
    profiler = _profiler(given.pop("profiler", None), directory)
    given.pop("overfit_batches", None)  # is the stream's
    group = {key: value for key, value in given.items() if value is not None}
    group.setdefault("enable_model_summary", False)
    build = instantiate({**group, "_partial_": True}, _convert_="all")
    # Lightning's own would report by a logger that is silenced.
    summary = [RichModelSummary()] if group["enable_model_summary"] else []
    trainer: Trainer = build(
        profiler=profiler,
        max_steps=steps,
        max_epochs=-1,
        val_check_interval=cfg.validate_every,
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


def set_flags(trainer: Mapping[str, Any]) -> None:
    """Sets torch's global flags before the first network computes.

    The Trainer sets them too, but after targets are computed, and it leaves those of an earlier run
    of this process (a job of the same sweep) as they are.
    """
    wanted = trainer.get("deterministic") or False
    if wanted:  # read when CUDA starts
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(bool(wanted), warn_only=wanted == "warn")
    torch.backends.cudnn.benchmark = bool(trainer.get("benchmark")) and not wanted


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
    return instantiate(given)
