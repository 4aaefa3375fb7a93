"""What a configuration may call, and what it must not hold.

A configuration is data: it may come from a stranger, with a run or an experiment. Hydra refuses
`os.system` and its like by whatever name; here is what is called at all.
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
        *("training.callbacks", "training.loggers", "views.recipes"),
    )
)
_CLASSES = (
    *("torch.nn", "torch.optim", "torchvision.transforms", "torchmetrics"),
    *("lightning.pytorch.callbacks", "lightning.pytorch.loggers"),
)
_BUILDERS = "torchvision.models"  # functions of this module, none below it
_RETURNED = ("timm",)  # whose networks come from functions of ours
_BY_PATH = "funmatch.models.user_models.from_path"  # calls what its `path` names
_SECRET = re.compile(r"KEY|TOKEN|SECRET|PASSWORD|CREDENTIAL", re.IGNORECASE)
_NO_SECRET = re.compile(r"(PATH|FILE|DIR|HOME|SOCK)$", re.IGNORECASE)
FUNCTION = re.compile(r"[\w.]+:\w+")
_LEAST = 12  # characters of a secret: shorter ones stand in a configuration by chance


def check(cfg: DictConfig) -> None:
    """Refuses to call what is not ours or our libraries', and to write secrets down.

    The environment variable FUNMATCH_ALLOW names further packages, with commas.

    Raises:
        ValueError: names the key, the value and the remedy.
    """
    secrets = {
        value: name
        for name, value in os.environ.items()
        if _SECRET.search(name) and not _NO_SECRET.search(name) and len(value) >= _LEAST
    }
    for key, text in _leaves(cfg):
        called = text.replace(":", ".")
        if _is_called(cfg, key) and not _allowed(called):
            raise ValueError(
                f"{key}={text}: a configuration may call networks, data, losses, optimisers, "
                "loggers and callbacks of funmatch, torch, torchvision, lightning and "
                f"torchmetrics; if you trust it, put FUNMATCH_ALLOW={called.rpartition('.')[0]} "
                "into the environment"
            )
        for secret in secrets:
            if secret in text:
                raise ValueError(
                    f"{key}: holds what {secrets[secret]} holds in the environment, and would be "
                    "written to files; leave it out"
                )


def targets() -> list[str]:
    """The same by name, for Hydra 1.4: it also looks at where what is called, or returned, is from.

    These names allow more than `check`, which is asked before.
    """
    packages = (*_OURS, *_CLASSES, _BUILDERS, *_RETURNED, *_named())
    return [f"{package}.*" for package in packages]


def instantiate(cfg: Any, **settings: Any) -> Any:
    """What a configuration describes, made by Hydra.

    Raises:
        ValueError: Hydra refuses it.
        Exception: what is called has failed; its own exception, which Hydra 1.3 wraps.
    """
    allowed = hydra_versions.whitelist("_execution_whitelist_", targets())
    try:
        return utils.instantiate(cfg, **settings, **allowed)
    except InstantiationException as error:
        failed = error.__cause__
        if not isinstance(failed, Exception):
            told = " ".join(str(error).split())
            remedy = "; FUNMATCH_ALLOW in the environment names what you trust" if allowed else ""
            failed = ValueError(f"{told}{remedy}")
    raise failed


def _is_called(cfg: DictConfig, key: str) -> bool:
    """Whether a value names what is called."""
    place, _, last = key.rpartition(".")
    if last != "path":
        return last == "_target_"
    node = OmegaConf.select(cfg, place) if place else cfg
    return bool(node.get("_target_") == _BY_PATH)


def _allowed(target: str) -> bool:
    module, _, name = target.rpartition(".")
    if target.startswith(tuple(f"{package}." for package in _named())):
        return True
    if not _is_module(module):  # but an attribute of one: whatever it has imported
        return False
    if module == _BUILDERS or _within(module, _OURS):
        return True
    return _within(module, _CLASSES) and name[:1].isupper()


def _named() -> list[str]:
    """Packages that the user trusts."""
    named = os.environ.get("FUNMATCH_ALLOW", "").split(",")
    return [each.strip() for each in named if each.strip()]


def _within(module: str, packages: tuple[str, ...]) -> bool:
    return f"{module}.".startswith(tuple(f"{package}." for package in packages))


def _is_module(name: str) -> bool:
    """Whether there is a file of this name; nothing is imported to find out."""
    top, *parts = name.split(".")
    found = importlib.util.find_spec(top) if top.isidentifier() else None
    if found is None or not found.submodule_search_locations:
        return False
    path = Path(found.submodule_search_locations[0], *parts)
    return path.is_dir() or path.with_name(f"{path.name}.py").is_file()


def _leaves(node: Any) -> Iterator[tuple[str, str]]:
    """All values with their dotted keys, but those that nobody could read."""
    for key in range(len(node)) if isinstance(node, ListConfig) else node:
        if node._get_full_key(key) == "hydra" or OmegaConf.is_missing(node, key):
            continue
        with suppress(OmegaConfBaseException):
            value = node[key]
            if OmegaConf.is_config(value):
                yield from _leaves(value)
            else:
                yield node._get_full_key(key), str(value)
