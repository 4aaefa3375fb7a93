"""The configuration: its types, and the identity of a run.

Nothing here imports torch: a wrong value is found in a fraction of a second.
"""

from dataclasses import dataclass, field
from typing import Any

from omegaconf import MISSING, DictConfig, ListConfig, OmegaConf


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
    """What every way of teaching shares."""

    recipe: Any = MISSING
    data: Any = MISSING
    optimizer: Any = MISSING
    schedule: Any = MISSING
    trainer: Any = field(default_factory=_any_argument)
    compute: Compute = field(default_factory=Compute)
    logger: Any = MISSING
    callbacks: Any = MISSING
    paths: Paths = field(default_factory=Paths)
    seed: int = 0
    init_seed: int = 0
    name: str = MISSING
    batch_size: int = MISSING
    epochs: int | None = None
    steps: int | None = None
    validate_every: int = MISSING
    checkpoint_every: int = 1000
    checkpoint_keep: int = 2
    max_skipped: int = 10
    max_time: str | None = None
    clip_norm: float | None = 1.0
    resume: str = "auto"
    origin: str | None = None
    dry_run: bool = False


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
    save_as: str | None = None


def train_size(cfg: DictConfig) -> int:
    """Number of images that are taught on."""
    return sum(int(part.train_size) for part in training_sets(cfg).values())


def training_sets(cfg: DictConfig) -> dict[str, DictConfig]:
    """The data sets that are taught on, by key, sorted: the transfer sets, or the data itself."""
    transfer = cfg.get("transfer") or {}
    return {f"transfer.{name}": transfer[name] for name in sorted(transfer)} or {"data": cfg.data}


def total_steps(cfg: DictConfig) -> int:
    """The length of a run in steps: the only place that knows of epochs."""
    if cfg.steps is not None:
        return int(cfg.steps)
    return round(float(cfg.epochs * train_size(cfg) / cfg.batch_size))


def seconds(duration: str) -> int:
    """Of hours:minutes:seconds, or of seconds alone."""
    return sum(int(part) * 60**n for n, part in enumerate(reversed(duration.split(":"))))


def student(cfg: DictConfig) -> DictConfig:
    """The network that learns: from a teacher, or from labels."""
    return cfg.student if "student" in cfg else cfg.model


def teachers(cfg: DictConfig) -> dict[str, DictConfig]:
    """The networks that teach, by key, sorted: members of an ensemble, or the teacher itself."""
    members = cfg.teacher.get("members") or {}
    return {f"teacher.members.{name}": members[name] for name in sorted(members)} or {
        "teacher": cfg.teacher
    }


def rank_count(cfg: DictConfig) -> int:
    """Of how many processes a run is."""
    devices = cfg.trainer.devices
    if isinstance(devices, ListConfig):
        devices = len(devices)
    elif not isinstance(devices, int) or devices < 1:  # all there are
        import torch

        devices = max(1, torch.cuda.device_count())
    return devices * int(cfg.trainer.num_nodes)
