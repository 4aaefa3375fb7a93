"""The configuration: its types, its values, and the identity of a run.

Nothing here imports torch: a wrong value is found in a fraction of a second.
"""

import hashlib
import json
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hydra.core.config_store import ConfigStore
from omegaconf import MISSING, DictConfig, OmegaConf

from funmatch.recipes import CROPS, TEACHER_CROPS


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


@dataclass
class Paths:
    """Where files go."""

    logs: str = "logs"


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
    name: str = MISSING
    batch_size: int = MISSING
    epochs: int | None = None
    steps: int | None = None
    validate_every: int = MISSING
    checkpoint_every: int = 1000
    clip_norm: float = 1.0
    resume: str = "auto"


@dataclass
class Train(Base):
    """Distillation."""

    teacher: Any = MISSING
    student: Any = MISSING
    objective: Any = MISSING


@dataclass
class Finetune(Base):
    """Learning from labels."""

    model: Any = MISSING


# What cannot change the result is no part of a run's identity.
_NOT_IDENTITY = (
    "hydra",
    "trainer",
    "paths",
    "logger",
    "callbacks",
    "name",
    "resume",
    "checkpoint_every",
)


def register() -> None:
    """Makes the types and the resolvers known to Hydra."""
    store = ConfigStore.instance()
    store.store(name="train_schema", node=Train)
    store.store(name="finetune_schema", node=Finetune)
    OmegaConf.register_new_resolver(
        "unless", lambda given, default: default if given is None else None, replace=True
    )
    OmegaConf.register_new_resolver(
        "subset", lambda each, classes, full: full if each is None else each * classes, replace=True
    )
    OmegaConf.register_new_resolver("run_id", lambda *, _root_: run_id(_root_), replace=True)


def total_steps(cfg: DictConfig) -> int:
    """The length of a run in steps: the only place that knows of epochs."""
    if cfg.steps is not None:
        return int(cfg.steps)
    return round(float(cfg.epochs * cfg.data.train_size / cfg.batch_size))


def identity(cfg: DictConfig) -> dict[str, Any]:
    """The part of a configuration that decides the result, as plain values."""
    plain = {str(key): cfg[key] for key in cfg if key not in _NOT_IDENTITY}
    plain = {
        key: OmegaConf.to_container(value, resolve=True) if OmegaConf.is_config(value) else value
        for key, value in plain.items()
    }
    return {**plain, "precision": cfg.trainer.precision}


def run_id(cfg: DictConfig) -> str:
    """The name of a run's directory: <recipe>-s<seed>-<8 hex of the configuration>."""
    text = json.dumps(identity(cfg), sort_keys=True)
    return f"{cfg.recipe.name}-s{cfg.seed}-{hashlib.sha256(text.encode()).hexdigest()[:8]}"


def run_directory(cfg: DictConfig) -> Path:
    """The same for a single run, a job of a sweep and a requeued one."""
    return Path(cfg.paths.logs) / cfg.name / run_id(cfg)


def read(path: Path) -> DictConfig:
    """The configuration that a run has left."""
    cfg = OmegaConf.create(path.read_text())
    assert isinstance(cfg, DictConfig)
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


def check(cfg: DictConfig) -> None:
    """Refuses values that cannot work, before any data is read.

    Raises:
        UserError: names the key, the value and the remedy.
    """
    name_is_plain = re.compile(r"(?!\.+$)[A-Za-z0-9._-]+").fullmatch
    _require(cfg, "name", name_is_plain, "use letters, digits, '.', '_' and '-' only")
    for key in ("batch_size", "validate_every", "checkpoint_every", "trainer.log_every"):
        _require(cfg, key, lambda value: value >= 1, "give a whole number from 1")
    _require(cfg, "seed", lambda value: value >= 0, "give a whole number from 0")
    _require(cfg, "resume", lambda value: value in ("auto", "never"), "choose auto or never")
    _require(
        cfg,
        "data.images_per_class",
        lambda value: value >= 1,
        "give a whole number from 1, or null",
    )
    _require(cfg, "data.min_area", lambda value: 0 < value <= 1, "give a share in (0, 1]")
    _require(cfg, "optimizer.lr", lambda value: value > 0, "give a positive number")
    _require(cfg, "optimizer.wd", lambda value: value >= 0, "give 0 or a positive number")
    _require(cfg, "objective.temperature", lambda value: value > 0, "give a positive number")
    _require(cfg, "recipe.ensemble", lambda value: value >= 1, "give a whole number from 1")
    for key, laws in (("recipe.teacher_crop", TEACHER_CROPS), ("recipe.crop", CROPS)):
        _require(cfg, key, laws.__contains__, f"choose {either(laws)}")
    if "teacher_crop" in cfg.recipe:
        remedy = "a fixed teacher has no word on mixed views; choose recipe=function_matching"
        _require(cfg, "recipe.mixing", lambda value: not value, remedy)
    _check_budget(cfg)
    if "teacher" in cfg:
        _check_teacher(cfg)


def _require(cfg: DictConfig, key: str, holds: Callable[[Any], object], remedy: str) -> None:
    """Refuses a value; a group that does not have the key is not asked."""
    value = OmegaConf.select(cfg, key)
    if value is None:
        return
    try:
        accepted = holds(value)
    except TypeError:  # text where a number belongs
        accepted = False
    if not accepted:
        raise UserError(f"{key}={value}: {remedy}")


def _check_budget(cfg: DictConfig) -> None:
    if (cfg.epochs is None) == (cfg.steps is None):
        raise UserError(
            f"epochs={_shown(cfg.epochs)} steps={_shown(cfg.steps)}: give exactly one of them"
        )
    key = "epochs" if cfg.steps is None else "steps"
    _require(cfg, key, lambda value: value >= 1, "give a whole number from 1")
    if cfg.data.train_size is not None and cfg.batch_size > cfg.data.train_size:
        raise UserError(
            f"batch_size={cfg.batch_size}: give at most the {cfg.data.train_size} training images"
        )
    steps, warmup = total_steps(cfg), OmegaConf.select(cfg, "schedule.warmup_steps")
    if warmup is not None and not 0 <= warmup < steps:
        raise UserError(
            f"schedule.warmup_steps={warmup}: must be less than the {steps} steps of the run "
            f"({key}={cfg[key]}); lower it or train longer"
        )


def _check_teacher(cfg: DictConfig) -> None:
    teacher = cfg.teacher
    if teacher.classes != cfg.data.classes:
        raise UserError(
            f"teacher.classes={teacher.classes}: data={cfg.data.name} has {cfg.data.classes} "
            "classes; choose a teacher that was fine-tuned on this data"
        )
    if teacher.weights is not None and not Path(teacher.weights).is_file():
        raise UserError(f"teacher.weights={teacher.weights}: no such file; {_makes(teacher)}")
    if teacher.weights is None and not teacher.finetune:
        raise UserError(f"teacher.weights=null: this teacher needs a file; {_makes(teacher)}")


def _shown(value: object) -> str:
    return "null" if value is None else str(value)


def _makes(teacher: DictConfig) -> str:
    if not teacher.finetune:
        return "give the path of a .safetensors or .npz file"
    return f"make it with: python src/finetune.py {' '.join(teacher.finetune)}"


def either(choices: Iterable[str]) -> str:
    """Choices in words: a, b or c."""
    *most, last = choices
    return f"{', '.join(most)} or {last}" if most else last
