"""Allowlist of the functions and classes that a configuration may call, and a check for secrets.

A configuration is data: it may come from an untrusted source, with a run or an experiment. Hydra
refuses `os.system` and the like under any name; this module allows only what is listed.
"""

import importlib.util
import os
import re
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

from hydra import utils
from hydra.errors import InstantiationException
from omegaconf import DictConfig, ListConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from funmatch.runtime import hydra_versions

_OURS = tuple(
    f"funmatch.{part}"
    for part in (
        *("data.datasets", "models", "objectives", "optim"),
        *("tasks", "training.callbacks", "training.loggers", "views.recipes"),
    )
)
_CLASSES = (
    *("torch.nn", "torch.optim", "torchvision.transforms", "torchmetrics"),
    *("lightning.pytorch.callbacks", "lightning.pytorch.loggers"),
    *("lightning.pytorch.profilers", "lightning.pytorch.strategies"),
)
_TRAINER = "lightning.Trainer"
_BUILDERS = "torchvision.models"  # functions of this module, but not of its submodules
_RETURNED = ("timm",)  # whose networks come from functions of ours
_BY_PATH = "funmatch.models.user_models.from_path"  # calls the function that its `path` names
_SECRET = re.compile(r"KEY|TOKEN|SECRET|PASSWORD|CREDENTIAL", re.IGNORECASE)
_NO_SECRET = re.compile(r"(PATH|FILE|DIR|HOME|SOCK)$", re.IGNORECASE)
FUNCTION = re.compile(r"[\w.]+:\w+")
_MIN_SECRET_LENGTH = 12  # characters; a shorter secret may occur in a configuration by chance


def check(cfg: DictConfig) -> None:
    """Refuses a configuration with a target outside the allowlist, or with a secret in a value.

    The environment variable FUNMATCH_ALLOW adds packages, separated by commas. Secrets are the
    values of environment variables named like a key, token, secret, password or credential.

    Raises:
        ValueError: a target is not allowed, or a value contains a secret; the message names the
            key and the remedy.
    """
    secrets = {
        value: name
        for name, value in os.environ.items()
        if _SECRET.search(name) and not _NO_SECRET.search(name) and len(value) >= _MIN_SECRET_LENGTH
    }
    for key, text in _leaves(cfg):
        called = text.replace(":", ".")
        if _is_called(cfg, key) and not _allowed(called):
            raise ValueError(
                f"{key}={text}: a configuration may call networks, data, losses, optimisers, "
                "loggers and callbacks of funmatch, torch, torchvision, lightning and "
                f"torchmetrics; {_remedy(called.rpartition('.')[0])}"
            )
        for secret in secrets:
            if secret in text:
                raise ValueError(
                    f"{key}: contains the value of the environment variable {secrets[secret]}, "
                    "which would be written to files; leave it out"
                )


def targets() -> list[str]:
    """The allowlist as names for Hydra 1.4, which also checks the modules of returned objects.

    These names allow more than `check`, which is called first.
    """
    packages = (*_OURS, *_CLASSES, _BUILDERS, *_RETURNED, *_named())
    return [_TRAINER, "lightning.pytorch.trainer.*", *(f"{package}.*" for package in packages)]


def instantiate(cfg: Any, **settings: Any) -> Any:
    """Instantiates a configuration by Hydra.

    Raises:
        ValueError: Hydra refuses the configuration.
        Exception: the exception of the function or class that was called; Hydra 1.3 wraps it.
    """
    allowed = hydra_versions.whitelist("_execution_whitelist_", targets())
    try:
        return utils.instantiate(cfg, **settings, **allowed)
    except InstantiationException as error:
        failed = error.__cause__
        if not isinstance(failed, Exception):
            reason = " ".join(str(error).split())
            remedy = "; FUNMATCH_ALLOW in the environment names what you trust" if allowed else ""
            failed = ValueError(f"{reason}{remedy}")
    raise failed


def _is_called(cfg: DictConfig, key: str) -> bool:
    """Returns True for a `_target_`, and for the `path` of `user_models.from_path`."""
    parent, _, last = key.rpartition(".")
    if last != "path":
        return last == "_target_"
    node = OmegaConf.select(cfg, parent) if parent else cfg
    return bool(node.get("_target_") == _BY_PATH)


def _allowed(target: str) -> bool:
    if target == _TRAINER:
        return True
    module, _, name = target.rpartition(".")
    if target.startswith(tuple(f"{package}." for package in _named())):
        return True
    if not _is_module(module):  # an attribute of a module: it may be anything that was imported
        return False
    if module == _BUILDERS or _within(module, _OURS):
        return True
    return _within(module, _CLASSES) and name[:1].isupper()


def _remedy(module: str) -> str:
    if module.startswith("funmatch.") and not _is_module(module):
        return (
            f"this version has no module {module}: read a run of an earlier version with that "
            "version, or train it again"
        )
    return f"if you trust it, put FUNMATCH_ALLOW={module} into the environment"


def _named() -> list[str]:
    """Packages that the user trusts."""
    named = os.environ.get("FUNMATCH_ALLOW", "").split(",")
    return [each.strip() for each in named if each.strip()]


def _within(module: str, packages: tuple[str, ...]) -> bool:
    return f"{module}.".startswith(tuple(f"{package}." for package in packages))


def _is_module(name: str) -> bool:
    """Returns True if a module or package of this name exists; imports no submodule."""
    top, *parts = name.split(".")
    spec = importlib.util.find_spec(top) if top.isidentifier() else None
    if spec is None or not spec.submodule_search_locations:
        return False
    path = Path(spec.submodule_search_locations[0], *parts)
    return path.is_dir() or path.with_name(f"{path.name}.py").is_file()


def _leaves(node: Any) -> Iterator[tuple[str, str]]:
    """All values with their dotted keys, except Hydra's and those that do not resolve."""
    for key in range(len(node)) if isinstance(node, ListConfig) else node:
        if node._get_full_key(key) == "hydra" or OmegaConf.is_missing(node, key):
            continue
        with suppress(OmegaConfBaseException):
            value = node[key]
            if OmegaConf.is_config(value):
                yield from _leaves(value)
            else:
                yield node._get_full_key(key), str(value)
