"""The configuration: its keys and their types, and what follows from them.

A key whose metadata says `identity: False` cannot change the result of a run, so it is no part of
the run's identity (see `identity.py`); every other key is, those that a user adds included.
Nothing here imports torch: a wrong value is found in a fraction of a second.
"""

from dataclasses import dataclass, field, fields
from typing import Any

from omegaconf import MISSING, DictConfig, ListConfig, OmegaConf

_ASIDE = {"identity": False}


def _any_argument() -> Any:
    """A group to which keys can be added without `+`; `trainer_arguments` checks them."""
    return OmegaConf.create({}, flags={"struct": False})


@dataclass
class Compute:
    """How a process computes a step."""

    workers: int = 0
    threads: int | None = None
    micro_batch: int | None = None
    channels_last: Any = "auto"
    compile: str = "none"
    fused: Any = "auto"


@dataclass
class Paths:
    """Where files are."""

    logs: str = "logs"
    data: str = "data"
    cache: str = "logs/cache"


@dataclass
class Base:
    """What `train` and `finetune` share."""

    recipe: Any = MISSING
    data: Any = MISSING
    optimizer: Any = MISSING
    schedule: Any = MISSING
    # But for the arguments that `trainer_arguments.identity` names.
    trainer: Any = field(default_factory=_any_argument, metadata=_ASIDE)
    compute: Compute = field(default_factory=Compute, metadata=_ASIDE)
    logger: Any = field(default=MISSING, metadata=_ASIDE)
    callbacks: Any = field(default=MISSING, metadata=_ASIDE)
    paths: Paths = field(default_factory=Paths, metadata=_ASIDE)
    seed: int = 0
    init_seed: int = 0
    name: str = field(default=MISSING, metadata=_ASIDE)
    batch_size: int = MISSING
    epochs: int | None = field(default=None, metadata=_ASIDE)  # another way to give steps
    steps: int | None = None
    validate_every: int = MISSING
    checkpoint_every: int = field(default=1000, metadata=_ASIDE)
    checkpoint_keep: int = field(default=2, metadata=_ASIDE)
    max_skipped: int = field(default=10, metadata=_ASIDE)
    max_time: str | None = field(default=None, metadata=_ASIDE)
    clip_norm: float | None = 1.0
    resume: str = field(default="auto", metadata=_ASIDE)
    if_running: str = field(default="fail", metadata=_ASIDE)
    origin: str | None = None
    dry_run: bool = field(default=False, metadata=_ASIDE)


@dataclass
class Train(Base):
    """Distillation."""

    transfer: Any = field(default_factory=dict)
    teacher: Any = MISSING
    student: Any = MISSING
    objective: Any = MISSING
    targets: Any = MISSING


@dataclass
class Finetune(Base):
    """Learning from labels."""

    model: Any = MISSING
    save_as: str | None = field(default=None, metadata=_ASIDE)


@dataclass
class Data:
    """Keys of a data set that are no part of a run's identity; see `conf/data/`."""

    root: Any = field(default=None, metadata=_ASIDE)  # where the data lies
    download: Any = field(default=None, metadata=_ASIDE)  # and how it gets there
    labels: Any = field(
        default=None, metadata=_ASIDE
    )  # what a table of labels holds is in the digest of a folder
    v2: Any = field(default=None, metadata=_ASIDE)  # further test sets
    real: Any = field(default=None, metadata=_ASIDE)
    cache: Any = field(default=None, metadata=_ASIDE)  # where decoded images are kept
    broken: Any = field(
        default=None, metadata=_ASIDE
    )  # the images that are left out are not in the digest
    suggested: Any = field(default=None, metadata=_ASIDE)  # values of other keys


@dataclass
class TransferSet:
    """Keys of a transfer set that are part of a run's identity: it is cropped as the data is."""

    name: Any = MISSING
    splits: Any = MISSING
    train_size: Any = MISSING
    digest: Any = MISSING


@dataclass
class Network:
    """Keys of a network that are no part of a run's identity; see `conf/network/`."""

    name: Any = field(
        default=None, metadata=_ASIDE
    )  # of what `net` builds, or of the file of the weights
    path: Any = field(default=None, metadata=_ASIDE)
    trial_images: Any = field(default=None, metadata=_ASIDE)


def non_identity_keys(*declarations: type) -> frozenset[str]:
    """The keys that these dataclasses declare as no part of a run's identity."""
    return frozenset(
        each.name
        for declaration in declarations
        for each in fields(declaration)
        if not each.metadata.get("identity", True)
    )


def train_size(cfg: DictConfig) -> int:
    """Number of training images."""
    return sum(int(part.train_size) for part in training_sets(cfg).values())


def training_sets(cfg: DictConfig) -> dict[str, DictConfig]:
    """The data sets that are trained on, by key, sorted: the transfer sets, or the data itself."""
    transfer = cfg.get("transfer") or {}
    return {f"transfer.{name}": transfer[name] for name in sorted(transfer)} or {"data": cfg.data}


def total_steps(cfg: DictConfig) -> int:
    """Steps of the run; epochs are converted here."""
    if cfg.steps is not None:
        return int(cfg.steps)
    return round(float(cfg.epochs * train_size(cfg) / cfg.batch_size))


def seconds(duration: str) -> int:
    """Seconds of a duration `h:m:s` or `s`."""
    return sum(int(part) * 60**n for n, part in enumerate(reversed(duration.split(":"))))


def student(cfg: DictConfig) -> DictConfig:
    """The network that learns: from a teacher, or from labels."""
    return cfg.student if "student" in cfg else cfg.model


def teachers(cfg: DictConfig) -> dict[str, DictConfig]:
    """The teachers, by key, sorted: members of an ensemble, or the teacher itself."""
    members = cfg.teacher.get("members") or {}
    return {f"teacher.members.{name}": members[name] for name in sorted(members)} or {
        "teacher": cfg.teacher
    }


def rank_count(cfg: DictConfig) -> int:
    """Number of ranks (processes) of a run."""
    devices = cfg.trainer.devices
    if isinstance(devices, ListConfig):
        devices = len(devices)
    elif not isinstance(devices, int) or devices < 1:  # all there are
        import torch

        devices = max(1, torch.cuda.device_count())
    return devices * int(cfg.trainer.num_nodes)
