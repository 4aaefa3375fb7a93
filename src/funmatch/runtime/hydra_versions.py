"""Differences between Hydra 1.3 and 1.4; no other module checks the version."""

from collections.abc import Callable, Sequence
from typing import Any

import hydra
from omegaconf import OmegaConf

HAS_WHITELIST = tuple(map(int, hydra.__version__.split(".")[:2])) >= (1, 4)
# Keywords of hydra.main and hydra.initialize: 1.4 behaves so by default, and warns of the keyword.
VERSION_BASE: dict[str, Any] = {} if HAS_WHITELIST else {"version_base": "1.3"}


def whitelist(keyword: str, targets: Sequence[str]) -> dict[str, Any]:
    """The keyword that says which targets may be called, for a Hydra that has it."""
    return {keyword: targets} if HAS_WHITELIST else {}


def register_resolver(name: str, resolver: Callable[..., Any]) -> None:
    """Registers a resolver with OmegaConf, without validation of its annotations."""
    register: Any = OmegaConf.register_resolver  # of 2.3: older, and another function
    if HAS_WHITELIST:
        register(name, resolver, replace=True, annotation_validation="off")
    else:
        OmegaConf.register_new_resolver(name, resolver, replace=True)
