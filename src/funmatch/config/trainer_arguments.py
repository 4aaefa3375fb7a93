"""Arguments of lightning.Trainer in a configuration.

Each is either passed on or refused with a reason and an alternative; a test walks through the
signature of the Trainer. Nothing here imports Lightning, which takes seconds.
"""

import re
from collections.abc import Callable, Mapping
from difflib import get_close_matches
from typing import Any

from omegaconf import DictConfig, OmegaConf

from funmatch.config.errors import UserError, join_or

TRAINER = "lightning.Trainer"

_Rule = tuple[Callable[[Any], object], str]
_COUNT: _Rule = (lambda v: v >= 1 and v == int(v), "give a whole number from 1")
_YES_OR_NO: _Rule = (lambda v: isinstance(v, bool), "choose true or false")
_PART: _Rule = (
    lambda v: v >= 1 if type(v) is int else type(v) is float and 0 < v <= 1,
    "give a number of batches from 1, or a share in (0, 1]",
)
_OWN_PROCESSES = "the processes of a run are started by funmatch"
_WHOLE_WEIGHTS = "clipping, checkpoints and the best student need whole weights in each process"
_PROFILERS = ("simple", "advanced", "pytorch")


def _one_of(*choices: str) -> _Rule:
    return choices.__contains__, f"choose {join_or(choices)}"


def _are_devices(value: Any) -> bool:
    if isinstance(value, int | str):
        return value in ("auto", -1) or (isinstance(value, int) and value >= 1)
    return len(value) > 0 and all(isinstance(number, int) and number >= 0 for number in value)


def _is_strategy(value: Any) -> bool:
    if OmegaConf.is_dict(value):
        return str(value.get("_target_", "")).rpartition(".")[2] == "DDPStrategy"
    name = re.fullmatch(r"auto|ddp(_find_unused_parameters_(true|false))?", value)
    return name is not None


# Arguments that are passed on to the Trainer: condition on the value, and remedy.
PASSED_ON: dict[str, _Rule] = {
    "accelerator": _one_of("auto", "cpu", "gpu", "cuda", "mps", "tpu"),
    "devices": (_are_devices, "give a number, a list as in [0,2], or auto"),
    "num_nodes": _COUNT,
    "strategy": (
        _is_strategy,
        "choose auto, ddp, ddp_find_unused_parameters_true, or a DDPStrategy by _target_; "
        f"spawn and fork: {_OWN_PROCESSES}; sharded weights: {_WHOLE_WEIGHTS}",
    ),
    "precision": _one_of("32-true", "bf16-mixed", "16-mixed"),
    "log_every_n_steps": _COUNT,
    "deterministic": (lambda v: v in (True, False, "warn"), "choose true, false or warn"),
    "benchmark": _YES_OR_NO,
    "detect_anomaly": _YES_OR_NO,
    "enable_autolog_hparams": _YES_OR_NO,
    "enable_model_summary": _YES_OR_NO,
    "inference_mode": _YES_OR_NO,
    "limit_val_batches": _PART,
    "limit_test_batches": _PART,
    "profiler": (
        lambda v: "_target_" in v if OmegaConf.is_dict(v) else v in _PROFILERS,
        "choose simple, advanced, pytorch, or a profiler by _target_",
    ),
    "sync_batchnorm": _YES_OR_NO,
    # Not passed on: the stream repeats the batches. Lightning would change the data loaders.
    "overfit_batches": (
        lambda v: type(v) is int and v >= 1,
        "give a whole number from 1: the batches of so many steps, over and over",
    ),
}

# Arguments that can change the result (besides the precision), with the Trainer's defaults.
# `benchmark` is not one of them: like the device, it selects among kernels that round differently.
_RESULT: dict[str, tuple[Any, ...]] = {
    "deterministic": (None, False),
    "sync_batchnorm": (None, False),
    "limit_val_batches": (None, 1.0),
    "limit_test_batches": (None, 1.0),
    "overfit_batches": (None,),
}

_STEPS = "a run has a number of steps, and the schedule ends with it; give epochs= or steps="
_VALIDATION = "give validate_every=, in steps"
# Refused: the reason and the key to use instead.
REFUSED: dict[str, str] = {
    "max_epochs": _STEPS,
    "min_epochs": _STEPS,
    "max_steps": _STEPS,
    "min_steps": _STEPS,
    "max_time": "give max_time=, as in 11:50:00; the run is saved and can be resumed",
    "limit_train_batches": "the stream of batches is endless; give steps=",
    "limit_predict_batches": "there is no predict loop; see funmatch evaluate and funmatch export",
    "fast_dev_run": "give debug=fast_dev_run",
    "val_check_interval": _VALIDATION,
    "check_val_every_n_epoch": _VALIDATION,
    "num_sanity_val_steps": "a validation before the first step would count as the best student's; "
    "give debug=fast_dev_run",
    "use_distributed_sampler": "each process takes its share of every batch from the stream",
    "reload_dataloaders_every_n_epochs": "the stream of batches is one endless epoch",
    "gradient_clip_val": "give clip_norm=; it is the norm over the whole batch",
    "gradient_clip_algorithm": "gradients are clipped by their norm; give clip_norm=",
    "accumulate_grad_batches": "a batch is split within its step; give compute.micro_batch=",
    "enable_checkpointing": "a run resumes from its checkpoints; see checkpoint_every and "
    "checkpoint_keep",
    "enable_progress_bar": "it is a callback; leave it out with callbacks.progress_bar=null",
    "callbacks": "is a config group; give callbacks=none, or +callbacks.NAME._target_=CLASS",
    "logger": "is a config group; give logger=none, or +logger.NAME._target_=CLASS",
    "plugins": "checkpoints and the environment of the processes are funmatch's; for the precision "
    "give trainer.precision=",
    "default_root_dir": "a run writes into its own directory; give paths.logs=",
    "barebones": "it turns off logging and checkpoints, and a run needs both",
    "model_registry": "checkpoints stay in the directory of the run; logger.wandb.artifact=true "
    "uploads the best student",
}

# The keys of conf/trainer/default.yaml.
_BASIC = (
    "_target_",
    "accelerator",
    "devices",
    "num_nodes",
    "strategy",
    "precision",
    "log_every_n_steps",
)
_COMPUTE = ("workers", "threads", "micro_batch", "channels_last", "compile", "fused")
_RENAMED = {"log_every": "trainer.log_every_n_steps", **{n: f"compute.{n}" for n in _COMPUTE}}


def check(cfg: DictConfig) -> None:
    """Refuses Trainer arguments that cannot work.

    Raises:
        UserError: names the key, the value and the remedy.
    """
    trainer = cfg.trainer
    for name in map(str, trainer):
        value = trainer[name]
        if name == "_target_" or (value is None and name not in REFUSED):
            continue
        if name not in PASSED_ON:
            if trainer.get("_target_", TRAINER) == TRAINER or name in _RENAMED or name in REFUSED:
                raise UserError(refusal(name, value))
            continue  # of a subclass of the Trainer, whose constructor checks it
        holds, remedy = PASSED_ON[name]
        try:
            accepted = holds(value)
        except (TypeError, ValueError, AttributeError):
            accepted = False
        if not accepted:
            raise UserError(f"trainer.{name}={_shown(value)}: {remedy}")
    if trainer.get("sync_batchnorm") and trainer.get("accelerator") == "cpu":
        raise UserError("trainer.sync_batchnorm=true: needs GPUs; leave it out")
    if (
        _differs(trainer, "overfit_batches")
        and cfg.get("targets", {}).get("mode", "live") != "live"
    ):
        raise UserError(
            f"trainer.overfit_batches={trainer.overfit_batches}: its views are not those that "
            f"targets={cfg.targets.mode} records; give targets=live"
        )
    one = trainer.get("devices", 1) in (1, [0]) and trainer.get("num_nodes", 1) == 1
    for name in ("limit_val_batches", "limit_test_batches"):
        if not one and _differs(trainer, name):
            raise UserError(
                f"trainer.{name}={_shown(trainer[name])}: counts batches of each device, so the "
                "result would depend on their number; give trainer.devices=1"
            )


def check_device(cfg: DictConfig, command: str) -> None:
    """Refuses Trainer arguments in a command that takes only the device from `trainer`.

    Raises:
        UserError: names the key, the value and the remedy.
    """
    check(cfg)
    for name in set(map(str, cfg.trainer)) - set(_BASIC):
        raise UserError(
            f"trainer.{name}={_shown(cfg.trainer[name])}: {command} does not use the Trainer; "
            "leave it out"
        )


def check_run(cfg: DictConfig, command: str) -> None:
    """Refuses settings that a command takes from the run itself, in one process.

    Raises:
        UserError: names the key, the value and the remedy.
    """
    own = {"precision": "32-true", "devices": 1, "num_nodes": 1, "strategy": "auto"}
    for name, default in own.items():
        if cfg.trainer.get(name, default) != default:
            raise UserError(
                f"trainer.{name}={_shown(cfg.trainer[name])}: {command} run= uses what the run "
                "says, in one process; leave it out"
            )


def refusal(name: str, value: Any) -> str:
    """Error message about a refused argument: the reason and an alternative."""
    given = f"trainer.{name}={_shown(value)}"
    if name in _RENAMED:
        return f"{given}: is now {_RENAMED[name]}; give {_RENAMED[name]}={_shown(value)}"
    if name in REFUSED:
        return f"{given}: {REFUSED[name]}"
    near = get_close_matches(name, [*PASSED_ON, *REFUSED, *_RENAMED], n=1)
    hint = f"did you mean trainer.{near[0]}?" if near else "see its documentation"
    return f"{given}: no such argument of {TRAINER}; {hint}"


def identity(trainer: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments that can change the result and differ from the Trainer's defaults."""
    return {name: trainer[name] for name in _RESULT if _differs(trainer, name)}


def _differs(trainer: Mapping[str, Any], name: str) -> bool:
    value = trainer.get(name)
    same = (value == each and type(value) is type(each) for each in _RESULT[name])
    return not any(same)  # 1 is one batch, 1.0 is all batches


def _shown(value: Any) -> str:
    names = {None: "null", True: "true", False: "false"}
    return names[value] if value is None or isinstance(value, bool) else str(value)
