"""What a configuration may call, and what it must not hold.

A configuration is data: it may come from a stranger, with a run or an experiment. Hydra refuses
`os.system` and its like by whatever name; here is what is called at all.
"""

import os
import re
from collections.abc import Iterator
from typing import Any

from omegaconf import DictConfig, OmegaConf

_MODULES = (
    *(f"funmatch.{part}" for part in ("callbacks", "data", "loggers", "models", "objectives")),
    *(f"funmatch.{part}" for part in ("optimizers", "recipes", "schedules", "shampoo")),
    *("torch.nn", "torch.optim", "torchvision.models", "torchvision.transforms"),
    *("timm", "lightning.pytorch.callbacks", "lightning.pytorch.loggers", "torchmetrics"),
)
_SECRET = re.compile(r"KEY|TOKEN|SECRET|PASSWORD|CREDENTIAL", re.IGNORECASE)
_LEAST = 8  # characters of a secret: shorter ones stand in a configuration by chance


def check(cfg: DictConfig) -> None:
    """Refuses to call what is not ours or our libraries', and to write secrets down.

    The environment variable FUNMATCH_ALLOW names further packages, with commas.

    Raises:
        ValueError: names the key, the value and the remedy.
    """
    allowed = (*_MODULES, *filter(None, os.environ.get("FUNMATCH_ALLOW", "").split(",")))
    secrets = {
        value: name
        for name, value in os.environ.items()
        if _SECRET.search(name) and len(value) >= _LEAST
    }
    plain = {key: cfg[key] for key in cfg if key != "hydra"}
    for key, value in _leaves(OmegaConf.to_container(OmegaConf.create(plain), resolve=True)):
        text = str(value)
        if key.endswith("_target_") and not any(text.startswith(f"{m}.") for m in allowed):
            raise ValueError(
                f"{key}={text}: a configuration may call networks, data, losses, optimisers, "
                "loggers and callbacks of funmatch, torch, torchvision, timm, lightning and "
                f"torchmetrics; if you trust it, put FUNMATCH_ALLOW={text.rpartition('.')[0]} into "
                "the environment"
            )
        for secret in secrets:
            if secret in text:
                raise ValueError(
                    f"{key}: holds what {secrets[secret]} holds in the environment, and would be "
                    "written to files; leave it out"
                )


def _leaves(value: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """All values with their dotted keys."""
    if isinstance(value, dict):
        for key, part in value.items():
            yield from _leaves(part, f"{prefix}.{key}" if prefix else str(key))
    elif isinstance(value, list):
        for number, part in enumerate(value):
            yield from _leaves(part, f"{prefix}[{number}]")
    else:
        yield prefix, value
