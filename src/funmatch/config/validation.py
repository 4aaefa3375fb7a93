"""Validation of configuration values, before data is read or torch is imported."""

import re
from collections.abc import Callable, Iterable
from itertools import pairwise
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from funmatch.config import trainer_arguments
from funmatch.config.errors import UserError, join_or
from funmatch.config.schema import rank_count, teachers, total_steps, train_size
from funmatch.models import pretrained
from funmatch.runtime import allowlist, hardware, secrets
from funmatch.views.recipes import CROPS, TEACHER_CROPS

_COUNT = (lambda value: value >= 1 and value == int(value), "give a whole number from 1")
_FROM_ZERO = (lambda value: value >= 0 and value == int(value), "give a whole number from 0")
_SEED = (lambda value: 0 <= value < 2**32, "give a whole number from 0 to 4294967295")
_POSITIVE = (lambda value: 0 < value < float("inf"), "give a positive number")
_AUTO = (lambda value: value == "auto" or isinstance(value, bool), "choose auto, true or false")
_YES_OR_NO = (lambda value: isinstance(value, bool), "choose true or false")
_NAME = (
    re.compile(r"(?!\.+$)[A-Za-z0-9._-]+").fullmatch,
    "use letters, digits, '.', '_' and '-' only",
)

_DURATION = re.compile(r"\d+:[0-5]\d:[0-5]\d|\d+")  # YAML reads 11:50:00 as a number


def _one_of(*choices: str) -> tuple[Callable[[Any], object], str]:
    return choices.__contains__, f"choose {join_or(choices)}"


def _is_mild(value: Any) -> bool:
    resize, crop = value
    return 0 < crop <= resize and all(side == int(side) for side in value)


def _rise(value: Any) -> bool:
    return all(a < b for a, b in pairwise(value)) and all(v == int(v) for v in value)


# Key, condition on its value, and remedy. Keys that a configuration lacks are not checked.
_RULES: dict[str, tuple[Callable[[Any], object], str]] = {
    "name": _NAME,
    "recipe.name": _NAME,
    "seed": _SEED,
    "init_seed": _SEED,
    "batch_size": _COUNT,
    "validate_every": _COUNT,
    "checkpoint_every": _COUNT,
    "checkpoint_keep": _COUNT,
    "max_skipped": _FROM_ZERO,
    "max_time": (_DURATION.fullmatch, "give hours:minutes:seconds, as in 11:50:00, or null"),
    "clip_norm": (_POSITIVE[0], "give a positive number, or null"),
    "optimizer.lr": _POSITIVE,
    "optimizer.momentum": (lambda value: 0 <= value < 1, "give a number in [0, 1)"),
    "optimizer.wd": (lambda value: 0 <= value < float("inf"), "give 0 or a positive number"),
    "schedule.warmup_steps": _FROM_ZERO,
    "schedule.milestones": (_rise, "give rising steps, as in [200,300,400]"),
    "objective.temperature": _POSITIVE,
    "recipe.crop": _one_of(*CROPS),
    "recipe.teacher_crop": _one_of(*TEACHER_CROPS),
    "recipe.ensemble": _COUNT,
    "recipe.mixing": _YES_OR_NO,
    "recipe.alpha": _POSITIVE,
    "data.flip": _YES_OR_NO,
    "data.download": _YES_OR_NO,
    "data.broken": _one_of("fail", "skip"),
    "data.decode": _one_of("host", "device"),
    "data.cache": _one_of("none", "disk", "device", "auto"),
    "data.mild": (_is_mild, "give two sides, resize and crop, crop <= resize: [160,128]"),
    "data.min_area": (lambda value: 0 < value <= 1, "give a share in (0, 1]"),
    "data.images_per_class": (_COUNT[0], "give a whole number from 1, or null"),
    "teacher.combine": _one_of("probability", "logit", "mean", "sum"),
    "targets.mode": _one_of("live", "auto", "record", "replay"),
    "targets.form": (
        re.compile(r"float32|float16|top[1-9]\d*").fullmatch,
        "choose float32, float16 or top<k>, as in top10",
    ),
    "targets.verify": _FROM_ZERO,
    "save_as": (_NAME[0], f"{_NAME[1]}, or null"),
    "dry_run": _YES_OR_NO,
    "if_running": _one_of("fail", "later"),
    "compute.workers": _FROM_ZERO,
    "compute.threads": (_COUNT[0], "give a whole number from 1, or null"),
    "compute.micro_batch": (_COUNT[0], "give a whole number from 1, or null"),
    "compute.channels_last": _AUTO,
    "compute.fused": _AUTO,
    "compute.compile": _one_of("none", "teacher", "student", "both"),
}
_MAY_BE_NULL = (
    "data.images_per_class",
    "compute.threads",
    "compute.micro_batch",
    "clip_norm",
    "max_time",
    "save_as",
)
_FIXED = "a run has a fixed number of steps, at whose end the schedule ends; give epochs= or steps="
_REFUSED_CALLBACKS = {
    "EarlyStopping": _FIXED,
    "Timer": "give max_time=, after which the run is saved and can be resumed",
    "GradientAccumulationScheduler": "a batch is split within its step; give compute.micro_batch=",
    "BatchSizeFinder": "the batch size is part of the recipe; give compute.micro_batch=",
    "LearningRateFinder": "its test steps would be steps of the run; sweep optimizer.lr instead",
    **dict.fromkeys(
        ("StochasticWeightAveraging", "WeightAveraging", "EMAWeightAveraging", "ModelPruning"),
        "changes the weights, and callbacks are no part of a run's identity",
    ),
}
_ABSENT = object()


def check_export(cfg: DictConfig, formats: Iterable[str]) -> None:
    """Refuses values of an export that cannot work.

    Raises:
        UserError: names the key, the value and the remedy.
    """
    _require(cfg, "format", lambda value: value in formats, f"choose {join_or(formats)}")
    for key in ("images", "calibration"):
        _require(cfg, key, *_COUNT)


def check(cfg: DictConfig) -> None:
    """Refuses values that cannot work, before any data is read.

    Raises:
        UserError: names the key, the value and the remedy.
    """
    for key, (holds, remedy) in _RULES.items():
        _require(cfg, key, holds, remedy)
    trainer_arguments.check(cfg)
    _check_callbacks(cfg)
    if "teacher_crop" in cfg.recipe:
        remedy = "a fixed teacher has no targets for mixed images; choose recipe=function_matching"
        _require(cfg, "recipe.mixing", lambda value: not value, remedy)
    if str(OmegaConf.select(cfg, "targets.form", default="")).startswith("top"):
        remedy = f"keep fewer than the {cfg.data.classes} classes of data={cfg.data.name}"
        _require(cfg, "targets.form", lambda form: int(form[3:]) < cfg.data.classes, remedy)
    if cfg.data.get("decode") == "device":
        remedy = "images decoded on the device are not cached; choose none, or decode=host"
        _require(cfg, "data.cache", lambda value: value in ("none", "auto"), remedy)
    _check_budget(cfg)
    networks = {name: cfg[name] for name in ("student", "model") if name in cfg}
    for key in networks:
        remedy = f"data={cfg.data.name} has {cfg.data.classes} classes"
        _require(cfg, f"{key}.classes", lambda value: value == cfg.data.classes, remedy)
    if "teacher" in cfg:
        check_teachers(cfg)
    for key, network in networks.items():
        _check_network(key, network)
    allowlist.check(cfg)
    secrets.check(cfg)


def _require(cfg: DictConfig, key: str, holds: Callable[[Any], object], remedy: str) -> None:
    """Refuses a value that does not satisfy a condition, if the configuration has the key."""
    value = OmegaConf.select(cfg, key, default=_ABSENT)
    crop_of_a_fixed_teacher = key == "recipe.crop" and "teacher_crop" in cfg.recipe
    if value is _ABSENT or (value is None and (key in _MAY_BE_NULL or crop_of_a_fixed_teacher)):
        return
    try:
        accepted = holds(value)
    except (TypeError, ValueError, AttributeError):  # text or null instead of a number
        accepted = False
    if not accepted:
        raise UserError(f"{key}={_shown(value)}: {remedy}")


def _check_callbacks(cfg: DictConfig) -> None:
    """Refuses Lightning callbacks that would change the length, steps or weights of a run."""
    for name, callback in cfg.callbacks.items():
        target = str(callback.get("_target_", "")) if OmegaConf.is_dict(callback) else ""
        package, _, kind = target.rpartition(".")
        if callback is not None and not target:
            raise UserError(f"callbacks.{name}={callback}: give callbacks.{name}._target_, or null")
        if package.startswith("lightning.") and kind in _REFUSED_CALLBACKS:
            key = f"callbacks.{name}._target_={target}"
            raise UserError(f"{key}: {_REFUSED_CALLBACKS[kind]}")


def _check_budget(cfg: DictConfig) -> None:
    if (cfg.epochs is None) == (cfg.steps is None):
        raise UserError(
            f"epochs={_shown(cfg.epochs)} steps={_shown(cfg.steps)}: give exactly one of them"
        )
    key = "epochs" if cfg.steps is None else "steps"
    _require(cfg, key, lambda value: value >= 1, "give a whole number from 1")
    images = train_size(cfg)
    _require(cfg, "batch_size", lambda v: v <= images, f"give at most the {images} training images")
    number = cfg.trainer.devices
    if OmegaConf.is_list(number) or (isinstance(number, int) and number > 0):  # not auto
        ranks = rank_count(cfg)
        remedy = f"give a multiple of the {ranks} ranks that share a batch"
        _require(cfg, "batch_size", lambda value: value % ranks == 0, remedy)
    steps, warmup = total_steps(cfg), OmegaConf.select(cfg, "schedule.warmup_steps")
    if warmup is not None and not 0 <= warmup < steps:
        raise UserError(
            f"schedule.warmup_steps={warmup}: must be less than the {steps} steps of the run "
            f"({key}={cfg[key]}); lower it or train longer"
        )
    milestones = OmegaConf.select(cfg, "schedule.milestones")
    first = warmup or 0
    if milestones is not None and not first < milestones[0] <= milestones[-1] < steps:
        raise UserError(
            f"schedule.milestones={milestones}: must lie between the {first} steps of warm-up and "
            f"the {steps} steps of the run ({key}={cfg[key]}); give others, or another length"
        )


def check_teachers(cfg: DictConfig) -> None:
    """Refuses teachers that do not fit the data or have no weights.

    Raises:
        UserError: names the key, the value and the remedy.
    """
    networks = teachers(cfg)
    if cfg.teacher.get("members") == {}:
        remedy = "add members, as in +teacher@teacher.members.a=timm teacher.members.a.name=..."
        raise UserError(f"teacher.members={{}}: {remedy}")
    for key, teacher in networks.items():
        if teacher.classes != cfg.data.classes:
            raise UserError(
                f"{key}.classes={teacher.classes}: data={cfg.data.name} has {cfg.data.classes} "
                "classes; choose a teacher that was fine-tuned on this data"
            )
        _check_made_by(cfg, key, teacher)
        if teacher.weights is None and not teacher.made_by:
            raise UserError(f"{key}.weights=null: a teacher needs weights; {_remedy(teacher)}")
        _check_network(key, teacher)
    if cfg.teacher.get("shares") is not None:
        members = sorted(cfg.teacher.members)
        example = ",".join(f"{name}:1" for name in members)
        _require(
            cfg,
            "teacher.shares",
            lambda shares: sorted(shares) == members and all(map(_POSITIVE[0], shares.values())),
            f"give each member a positive number, as in {{{example}}}, or null",
        )


def _check_made_by(cfg: DictConfig, key: str, teacher: DictConfig) -> None:
    made_by = teacher.get("made_by")
    if made_by is None:
        return
    if not OmegaConf.is_dict(made_by) or set(made_by) != {"command", "overrides"}:
        example = "{command:finetune,overrides:[data=pets,...]}"
        raise UserError(f"{key}.made_by={made_by}: give {example}, or null")
    _require(cfg, f"{key}.made_by.command", *_one_of("train", "finetune"))
    _require(
        cfg,
        f"{key}.made_by.overrides",
        lambda value: OmegaConf.is_list(value) and all(isinstance(each, str) for each in value),
        "give a list, as in [data=pets,model=bit_r152x2]",
    )


def _check_network(key: str, network: DictConfig) -> None:
    side, resize = network.side, network.resize
    if None not in (side, resize) and not 0 < side <= resize:
        raise UserError(
            f"{key}.resize={resize}: give at least {key}.side={side}, the size of the crop"
        )
    _check_path(key, network)
    weights = network.get("weights")
    if weights in pretrained.WEIGHTS:
        try:
            pretrained.check(weights)
        except ValueError as error:
            raise UserError(f"{key}.{error}") from error
    elif not (weights in (None, "hub", "included") or Path(str(weights)).is_file()):
        raise UserError(f"{key}.weights={weights}: no such file or name; {_remedy(network)}")


def _check_path(key: str, network: DictConfig) -> None:
    path = network.get("path")
    if path is None:
        return
    if network.net["_target_"].endswith(".from_path"):
        if not allowlist.FUNCTION.fullmatch(path):
            raise UserError(f"{key}.path={path}: give package.module:function")
    elif not Path(path).is_file():
        raise UserError(f"{key}.path={path}: no such file; give an exported classifier")


def _shown(value: object) -> str:
    return "null" if value is None else str(value)


def _remedy(network: DictConfig) -> str:
    if made_by := network.get("made_by"):
        command = hardware.invocation(made_by.command)
        return f"create them with: {command} {' '.join(made_by.overrides)}"
    return f"give the path of a .safetensors or .npz file, or {join_or(pretrained.NAMES)}"
