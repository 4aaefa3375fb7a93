"""Weights of a network in files: written by a run, released by the authors, saved by PyTorch."""

from collections.abc import Callable
from pathlib import Path

import safetensors.torch
import torch
from torch import nn

from funmatch.models import bit


def _safetensors(net: nn.Module, path: Path) -> None:
    net.load_state_dict(safetensors.torch.load_file(path))


def _state_dict(net: nn.Module, path: Path) -> None:
    net.load_state_dict(torch.load(path, map_location="cpu", weights_only=True))


_LOADERS: dict[str, Callable[..., None]] = {
    ".safetensors": _safetensors,
    ".npz": bit.load_npz,
    ".pt": _state_dict,
    ".pth": _state_dict,
}


def load(net: nn.Module, path: Path) -> None:
    """Loads weights into a network, in place.

    Raises:
        ValueError: the kind of file is unknown, or the weights do not fit the network.
    """
    if path.suffix not in _LOADERS:
        raise ValueError(f"{path}: unknown kind of weights; give one of {', '.join(_LOADERS)}")
    try:
        _LOADERS[path.suffix](net, path)
    except RuntimeError as error:  # PyTorch's list of keys and shapes
        raise ValueError(
            f"{path}: the weights do not fit: {' '.join(str(error).split())}"
        ) from error
