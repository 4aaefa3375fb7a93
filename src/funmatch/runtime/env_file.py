"""Reads `.env` of the current directory: keys of trackers, folders, settings of a cluster.

The file may lie in a folder that somebody else has made. So only the variables listed here are
taken, and an address that a key is sent to only if the key itself is in the file.
"""

import os
import re
from pathlib import Path

from dotenv import dotenv_values

_TAKEN = re.compile(
    r"WANDB_(API_KEY|ENTITY|MODE|PROJECT)|MLFLOW_TRACKING_(TOKEN|USERNAME|PASSWORD)"
    r"|FUNMATCH_(DATA|CACHE|IMAGES)|SLURM_[A-Z_]+|(GLOO|NCCL)_SOCKET_IFNAME"
)
# Addresses, and the keys that are sent there.
_ADDRESSES = {
    "WANDB_BASE_URL": ("WANDB_API_KEY",),
    "MLFLOW_TRACKING_URI": ("MLFLOW_TRACKING_TOKEN", "MLFLOW_TRACKING_PASSWORD"),
}


def load(path: Path) -> list[str]:
    """Sets the environment variables of a file, except those that are set already.

    Returns:
        The names of the variables that are ignored.
    """
    if not path.is_file():
        return []
    values = {name: value for name, value in dotenv_values(path).items() if value is not None}
    ignored = []
    for name, value in values.items():
        keys = _ADDRESSES.get(name, ())
        own = all(key in values or key not in os.environ for key in keys)
        if (keys and own) or _TAKEN.fullmatch(name):
            os.environ.setdefault(name, value)
        elif name not in os.environ:
            ignored.append(name)
    return ignored
