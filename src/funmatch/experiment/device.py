"""The device that a process computes on, and torch's global settings."""

import logging
import os
import warnings
from collections.abc import Mapping
from typing import Any

import torch
from lightning.fabric import Fabric
from lightning.fabric.plugins.environments.lightning import LightningEnvironment

from funmatch.experiment.experiment import Setup
from funmatch.runtime import distributed


def device(setup: Setup) -> torch.device:
    """The torch device of this rank."""
    fabric = Fabric(
        accelerator=setup.trainer["accelerator"], devices=1, plugins=[LightningEnvironment()]
    )
    if fabric.device.type != "cuda":
        return fabric.device
    devices, rank = setup.trainer["devices"], distributed.local_rank()
    return torch.device("cuda", devices[rank] if isinstance(devices, list) else rank)


def configure_torch(setup: Setup) -> None:
    """Sets torch's threads, flags and device, and silences warnings of frameworks at our own use.

    It comes before the first network computes.
    """
    if setup.compute.threads is not None:
        torch.set_num_threads(setup.compute.threads)
    _set_flags(setup.trainer)
    if (current := device(setup)).type == "cuda":
        torch.cuda.set_device(current)  # else each rank holds memory of the first one too
    for name in ("lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.ERROR)
    for message in (
        ".*does not have many workers.*",
        ".*isinstance.treespec, LeafSpec.*",
        ".*is smaller than the logging interval.*",
        ".*resuming from a checkpoint that ended.*",  # the stream begins at the restored step
        ".*sync_dist=True.*",  # our metrics are means over all ranks already
        r".*`lr_scheduler.step\(\)` before `optimizer.step\(\)`.*",  # the first were left out
        ".*`srun` command is available.*",  # nor is it needed where we start the ranks
    ):
        warnings.filterwarnings("ignore", message)


def _set_flags(trainer: Mapping[str, Any]) -> None:
    """Sets torch's global flags.

    The Trainer sets them too, but after targets are computed, and it leaves those of an earlier run
    of this process (a job of the same sweep) as they are.
    """
    wanted = trainer.get("deterministic") or False
    if wanted:  # read when CUDA starts
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(bool(wanted), warn_only=wanted == "warn")
    torch.backends.cudnn.benchmark = bool(trainer.get("benchmark")) and not wanted
