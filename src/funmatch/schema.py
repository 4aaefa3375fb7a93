"""The configuration: its types, and the identity of a run.

Nothing here imports torch: a wrong value is found in a fraction of a second.
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

from omegaconf import MISSING, DictConfig, OmegaConf

from funmatch import files, trust


class UserError(ValueError):
    """A mistake of the user: one line with key, value and remedy."""


@dataclass
class Trainer:
    """Where and how a run is computed."""

    accelerator: str = "auto"
    devices: Any = 1
    num_nodes: int = 1
    strategy: str = "auto"
    precision: str = "32-true"
    log_every: int = 50
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
    trainer: Trainer = field(default_factory=Trainer)
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


# What cannot change the result is no part of a run's identity.
_NOT_IDENTITY = (
    *("hydra", "trainer", "paths", "logger", "callbacks"),
    *("name", "resume", "checkpoint_every", "checkpoint_keep", "max_skipped", "max_time"),
    *("epochs", "dry_run", "save_as"),
)
# Nor is where the data lies, how it got there, where it is kept, and what it suggests for use
# elsewhere; what a table of labels says is in the digest of a folder.
_NOT_IDENTITY_OF_DATA = ("root", "download", "suggested", "v2", "real", "labels", "cache", "broken")
_IDENTITY_OF_TRANSFER = ("name", "splits", "train_size", "digest")  # it is cut as the data is


def train_size(cfg: DictConfig) -> int:
    """Number of images that are taught on."""
    return sum(int(part.train_size) for part in taught_on(cfg).values())


def taught_on(cfg: DictConfig) -> dict[str, DictConfig]:
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


def identity(cfg: DictConfig) -> dict[str, Any]:
    """The part of a configuration that decides the result, as plain values."""
    plain = {str(key): cfg[key] for key in cfg if key not in _NOT_IDENTITY}
    plain = {
        key: OmegaConf.to_container(value, resolve=True) if OmegaConf.is_config(value) else value
        for key, value in plain.items()
    }
    # Epochs are another way to say steps.
    plain |= {"steps": total_steps(cfg), "precision": cfg.trainer.precision}
    targets = plain.pop("targets", None) or {"mode": "live"}
    if targets["mode"] != "live" and "teacher_crop" not in plain["recipe"]:
        plain["targets"] = targets["form"]  # read or asked, the target is rounded as a record is
    if plain.get("init_seed") == plain["seed"]:
        del plain["init_seed"]
    if origin := plain.pop("origin", None):
        plain["origin"] = origin[:12]
    transfer = plain.get("transfer") or {}
    for name, data in transfer.items():
        transfer[name] = {key: data[key] for key in _IDENTITY_OF_TRANSFER if key in data}
    if plain["data"].get("decode") == "host":
        del plain["data"]["decode"]
    for data in (plain["data"], *transfer.values()):
        # What the splits are made with is said beside them, unless someone changed it there.
        said = [key for key, value in data["splits"].items() if data.get(key) == value]
        for key in said:
            del data["splits"][key]
        for place in (data, data["splits"]):
            for key in _NOT_IDENTITY_OF_DATA:
                place.pop(key, None)
    teacher = plain.get("teacher") or {}
    networks = (plain.get("student"), plain.get("model"), teacher)
    for network in filter(None, (*networks, *(teacher.get("members") or {}).values())):
        for key in ("name", "path", "trial_images"):  # the net tells it, or the weights
            network.pop(key, None)
        path = network["net"].get("path") if isinstance(network.get("net"), dict) else None
        if isinstance(path, str) and Path(path).is_file():
            network["net"]["path"] = "".join(_digest_of(part) for part in files.parts(Path(path)))
        weights = network.get("weights")
        if isinstance(weights, str) and Path(weights).is_file():  # the file counts, not its place
            network["weights"] = _digest_of(Path(weights))
    return _normal(plain)


def _normal(value: Any) -> Any:
    """Plain values in which 10 and 10.0 are the same."""
    if isinstance(value, dict):
        return {key: _normal(part) for key, part in value.items()}
    if isinstance(value, list):
        return [_normal(part) for part in value]
    return int(value) if isinstance(value, float) and value.is_integer() else value


def _digest_of(path: Path) -> str:
    stat = path.stat()
    return _digest(path, stat.st_size, stat.st_mtime_ns)


@lru_cache
def _digest(path: Path, size: int, changed: int) -> str:
    """Of a file's content; size and time of change only tell a new content from the old."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def run_id(cfg: DictConfig) -> str:
    """The name of a run's directory: <recipe>-s<seed>-<8 hex of the configuration>."""
    text = json.dumps(identity(cfg), sort_keys=True)
    return f"{cfg.recipe.name}-s{cfg.seed}-{hashlib.sha256(text.encode()).hexdigest()[:8]}"


def run_directory(cfg: DictConfig) -> Path:
    """The same for a single run, a job of a sweep and a requeued one."""
    return Path(cfg.paths.logs) / cfg.name / run_id(cfg)


def read(path: Path) -> DictConfig:
    """The configuration that a run has left.

    Raises:
        UserError: the file is damaged.
        ValueError: it would call what no configuration may.
    """
    try:
        cfg = OmegaConf.create(path.read_text())
        identity(cfg)  # type: ignore[arg-type]
    except Exception as error:  # whatever a parser makes of a damaged file
        raise UserError(
            f"{path}: damaged ({type(error).__name__}); remove it, the same command writes it again"
        ) from error
    assert isinstance(cfg, DictConfig)
    trust.check(cfg)
    return cfg


def differing_key(old: Mapping[str, Any], new: Mapping[str, Any], prefix: str = "") -> str | None:
    """The first key, with its two values, in which two identities differ."""
    for key in sorted({*old, *new}):
        before, after = old.get(key), new.get(key)
        if isinstance(before, Mapping) and isinstance(after, Mapping):
            if found := differing_key(before, after, f"{prefix}{key}."):
                return found
        elif before != after:
            return f"{prefix}{key} (there {before}, here {after})"
    return None
