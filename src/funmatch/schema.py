"""The configuration: its types, its values, and the identity of a run.

Nothing here imports torch: a wrong value is found in a fraction of a second.
"""

import hashlib
import json
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
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
    *("hydra", "trainer", "paths", "logger", "callbacks"),
    *("name", "resume", "checkpoint_every", "epochs"),
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
    # Epochs are another way to say steps; what a data set suggests stands where it is used.
    plain |= {"steps": total_steps(cfg), "precision": cfg.trainer.precision}
    plain["data"].pop("suggested", None)
    weights = plain.get("teacher", {}).get("weights")
    if weights is not None and Path(weights).is_file():  # the file counts, not its place
        stat = Path(weights).stat()
        plain["teacher"]["weights"] = _digest(weights, stat.st_size, stat.st_mtime_ns)
    return plain


@lru_cache
def _digest(path: str, size: int, changed: int) -> str:
    """Of a file's content; size and time of change only tell a new content from the old."""
    with Path(path).open("rb") as file:
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
    """
    try:
        cfg = OmegaConf.create(path.read_text())
        identity(cfg)  # type: ignore[arg-type]
    except Exception as error:  # whatever a parser makes of a damaged file
        raise UserError(
            f"{path}: damaged ({type(error).__name__}); remove it, the same command writes it again"
        ) from error
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


def either(choices: Iterable[str]) -> str:
    """Choices in words: a, b or c."""
    *most, last = choices
    return f"{', '.join(most)} or {last}" if most else last


_COUNT = (lambda value: value >= 1 and value == int(value), "give a whole number from 1")
_FROM_ZERO = (lambda value: value >= 0 and value == int(value), "give a whole number from 0")
_POSITIVE = (lambda value: 0 < value < float("inf"), "give a positive number")
_YES_OR_NO = (lambda value: isinstance(value, bool), "choose true or false")
_NAME = (
    re.compile(r"(?!\.+$)[A-Za-z0-9._-]+").fullmatch,
    "use letters, digits, '.', '_' and '-' only",
)


def _one_of(*choices: str) -> tuple[Callable[[Any], object], str]:
    return choices.__contains__, f"choose {either(choices)}"


# Key, what its value must hold, and the remedy. A key that a configuration lacks is not asked.
_RULES: dict[str, tuple[Callable[[Any], object], str]] = {
    "name": _NAME,
    "recipe.name": _NAME,
    "seed": (lambda value: 0 <= value < 2**32, "give a whole number from 0 to 4294967295"),
    "resume": _one_of("auto", "never"),
    "batch_size": _COUNT,
    "validate_every": _COUNT,
    "checkpoint_every": _COUNT,
    "clip_norm": _POSITIVE,
    "optimizer.lr": _POSITIVE,
    "optimizer.wd": (lambda value: 0 <= value < float("inf"), "give 0 or a positive number"),
    "schedule.warmup_steps": _FROM_ZERO,
    "objective.temperature": _POSITIVE,
    "recipe.crop": _one_of(*CROPS),
    "recipe.teacher_crop": _one_of(*TEACHER_CROPS),
    "recipe.ensemble": _COUNT,
    "recipe.mixing": _YES_OR_NO,
    "data.flip": _YES_OR_NO,
    "data.min_area": (lambda value: 0 < value <= 1, "give a share in (0, 1]"),
    "data.images_per_class": (_COUNT[0], "give a whole number from 1, or null"),
    "trainer.accelerator": _one_of("auto", "cpu", "gpu", "cuda", "mps", "tpu"),
    "trainer.precision": _one_of("32-true", "bf16-mixed", "16-mixed"),
    "trainer.num_nodes": _COUNT,
    "trainer.workers": _FROM_ZERO,
    "trainer.threads": (_COUNT[0], "give a whole number from 1, or null"),
    "trainer.log_every": _COUNT,
}
_MAY_BE_NULL = ("data.images_per_class", "trainer.threads")
_ABSENT = object()


def check(cfg: DictConfig) -> None:
    """Refuses values that cannot work, before any data is read.

    Raises:
        UserError: names the key, the value and the remedy.
    """
    for key, (holds, remedy) in _RULES.items():
        _require(cfg, key, holds, remedy)
    if "teacher_crop" in cfg.recipe:
        remedy = "a fixed teacher has no word on mixed views; choose recipe=function_matching"
        _require(cfg, "recipe.mixing", lambda value: not value, remedy)
    _check_budget(cfg)
    for network in ("student", "model"):
        if network in cfg:
            remedy = f"data={cfg.data.name} has {cfg.data.classes} classes"
            _require(cfg, f"{network}.classes", lambda value: value == cfg.data.classes, remedy)
    if "teacher" in cfg:
        _check_teacher(cfg)


def _require(cfg: DictConfig, key: str, holds: Callable[[Any], object], remedy: str) -> None:
    """Refuses a value; a key that the configuration lacks is not asked."""
    value = OmegaConf.select(cfg, key, default=_ABSENT)
    crop_of_a_fixed_teacher = key == "recipe.crop" and "teacher_crop" in cfg.recipe
    if value is _ABSENT or (value is None and (key in _MAY_BE_NULL or crop_of_a_fixed_teacher)):
        return
    try:
        accepted = holds(value)
    except (TypeError, ValueError):  # text, or nothing, where a number belongs
        accepted = False
    if not accepted:
        raise UserError(f"{key}={_shown(value)}: {remedy}")


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
