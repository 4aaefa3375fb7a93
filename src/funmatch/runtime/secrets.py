"""Check that a configuration, which is written to files, contains no secret of the environment."""

import os
import re
from collections.abc import Iterator
from contextlib import suppress
from typing import Any

from omegaconf import DictConfig, ListConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

_SECRET = re.compile(r"KEY|TOKEN|SECRET|PASSWORD|CREDENTIAL|_PAT$|_URL$|_DSN$", re.IGNORECASE)
_NO_SECRET = re.compile(r"(PATH|FILE|DIR|HOME|SOCK)$", re.IGNORECASE)
_MIN_LENGTH = 12  # characters; a shorter secret may occur in a configuration by chance


def check(cfg: DictConfig) -> None:
    """Refuses a configuration with a secret in a value.

    Secrets are the values of environment variables named like a key, token, secret, password,
    credential or address with a password.

    Raises:
        ValueError: names the key and the variable.
    """
    secrets = {
        value: name
        for name, value in os.environ.items()
        if _SECRET.search(name)
        and not _NO_SECRET.search(name)
        and len(value) >= _MIN_LENGTH
        and (not name.upper().endswith("_URL") or "@" in value)
    }
    for key, text in _leaves(cfg):
        for secret in secrets:
            if secret in text:
                raise ValueError(
                    f"{key}: contains the value of the environment variable {secrets[secret]}, "
                    "which would be written to files; leave it out"
                )


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
