"""What a configuration may call, and what it must not hold.

A configuration is data: it may come from a stranger, with a run or an experiment. Hydra refuses
`os.system` and its like by whatever name; here is what is called at all.
"""

import os
import re
from collections.abc import Iterator
from contextlib import suppress
from typing import Any

from omegaconf import DictConfig, ListConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

_MODULES = (
    *(f"funmatch.{part}" for part in ("callbacks", "data", "loggers", "models", "objectives")),
    *(f"funmatch.{part}" for part in ("optimizers", "recipes", "schedules", "shampoo")),
    *("torch.nn", "torch.optim", "torchvision.models", "torchvision.transforms"),
    *("timm", "lightning.pytorch.callbacks", "lightning.pytorch.loggers", "torchmetrics"),
)
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
    named = os.environ.get("FUNMATCH_ALLOW", "").split(",")
    allowed = tuple(f"{name}." for name in (*_MODULES, *map(str.strip, named)) if name)
    secrets = {
        value: name
        for name, value in os.environ.items()
        if _SECRET.search(name) and not _NO_SECRET.search(name) and len(value) >= _LEAST
    }
    for key, text in _leaves(cfg):
        called = text.replace(":", ".")
        if _is_called(key, text) and not called.startswith(allowed):
            raise ValueError(
                f"{key}={text}: a configuration may call networks, data, losses, optimisers, "
                "loggers and callbacks of funmatch, torch, torchvision, timm, lightning and "
                f"torchmetrics; if you trust it, put FUNMATCH_ALLOW={called.rpartition('.')[0]} "
                "into the environment"
            )
        for secret in secrets:
            if secret in text:
                raise ValueError(
                    f"{key}: holds what {secrets[secret]} holds in the environment, and would be "
                    "written to files; leave it out"
                )


def _is_called(key: str, text: str) -> bool:
    """Whether a value names what is called: also `path` of a network, if it is no file."""
    named = key.endswith("net.path") and FUNCTION.fullmatch(text)
    return key.endswith("_target_") or bool(named)


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
