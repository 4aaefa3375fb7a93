"""Builds the networks of an experiment, with their weights and compute options."""

import logging
import re
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from funmatch.config.errors import UserError
from funmatch.experiment.experiment import Experiment, Setup
from funmatch.experiment.specs import NetworkSpec
from funmatch.models import load_weights, timm_models
from funmatch.models.frozen import Frozen
from funmatch.models.network import Network
from funmatch.models.teacher import NAME, Teacher
from funmatch.runtime import log
from funmatch.tasks.base import Task

_log = logging.getLogger(__name__)


def build_network(spec: NetworkSpec, features: tuple[str, ...] = ()) -> Network:
    """A network with fresh weights.

    Args:
        spec: its description.
        features: names of the modules whose outputs it keeps.

    Raises:
        UserError: its input is not known; the message names the key.
    """
    try:
        net: nn.Module = spec.net()
        inputs = timm_models.resolve_input_spec(
            net, mean=spec.mean, std=spec.std, side=spec.side, resize=spec.resize
        )
    except ValueError as error:
        if re.match(r"\w+=", str(error)):  # it names a key of the network, but not whose
            raise UserError(f"{spec.key}.{error}") from error
        raise
    return Network(net, **inputs, features=features)


def build_student(experiment: Experiment, features: tuple[str, ...] = ()) -> Network:
    """The network that learns, with the weights that it starts from."""
    spec = experiment.student
    network = build_network(spec, features)
    if spec.weights is not None:
        load_weights.load(network.net, spec.weights, head=spec.head)
    warn_of_batch_norm(experiment, network, spec.key)
    return with_compute_options(experiment, network, spec)


def load_student(experiment: Experiment) -> Network:
    """The student that a run has left."""
    network = build_network(experiment.student)
    load_weights.load(network.net, experiment.run.student)
    return network


def build_teacher(setup: Setup, task: Task, load: Callable[[NetworkSpec], Network]) -> Teacher:
    """The teacher, of one network or several.

    Args:
        setup: has a teacher.
        task: combines the predictions of several.
        load: builds each network from its description, with its weights.
    """
    spec = setup.teacher
    assert spec is not None
    frozen = {name: freeze(setup, load(member), member) for name, member in spec.members.items()}
    if spec.combine is None:
        return Teacher({NAME: frozen[NAME]})
    shares = spec.shares
    return Teacher(
        {f"{NAME}.{name}": network for name, network in frozen.items()},
        combine=spec.combine,
        weights=None if shares is None else tuple(float(shares[name]) for name in frozen),
        means=task.means,
    )


def freeze(setup: Setup, network: Network, spec: NetworkSpec) -> Frozen:
    """A teacher's network, with the precision and compute options of a run."""
    dtype = torch.bfloat16 if setup.precision == "bf16-mixed" else torch.float32
    return Frozen(network, dtype=dtype, **_compute_options(setup, network, spec))


def with_compute_options(setup: Setup, network: Network, spec: NetworkSpec) -> Network:
    """A network that learns, with the memory layout and compilation of a run."""
    return network.set_compute_options(**_compute_options(setup, network, spec))


def warn_of_batch_norm(experiment: Experiment, module: nn.Module, name: str) -> None:
    """Reports that BatchNorm normalises over a part of the batch, if it is split.

    So the result depends on the split, which is no part of the run's identity.
    """
    rows, batch = experiment.pass_size, experiment.batch_size
    norms = any(isinstance(m, nn.modules.batchnorm._BatchNorm) for m in module.modules())
    if experiment.trainer.get("sync_batchnorm") and rows == experiment.rank_batch_size:
        return
    if norms and rows < batch:
        split = rows < experiment.rank_batch_size
        key = f"compute.micro_batch={rows}" if split else f"{experiment.ranks} devices"
        what = f"BatchNorm of the {name} sees {rows} images at a time, not {batch}"
        log.rank_zero_info(_log, f"{key}: {what}")


def _compute_options(setup: Setup, network: Network, spec: NetworkSpec) -> dict[str, Any]:
    """Memory layout of a network, and the rows for which it is compiled; None: it is not."""
    channels_last, choice = setup.compute.channels_last, setup.compute.compile
    if channels_last == "auto":
        # On a CPU GroupNorm is slower in this layout, all else is faster.
        channels_last = not any(isinstance(m, nn.GroupNorm) for m in network.modules())
    role = "teacher" if spec.is_teacher else "student"
    rows = setup.pass_size if choice in (role, "both") else None
    return {"channels_last": channels_last, "compiled": rows}
