"""Weights of a network in files: written by a run, released by the authors, saved by PyTorch."""

import pickle
import zipfile
from collections.abc import Callable
from pathlib import Path

import safetensors.torch
import torch
from safetensors import SafetensorError
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
        ValueError: the kind of file is unknown, it is damaged, or it does not fit the network.
    """
    if path.suffix not in _LOADERS:
        raise ValueError(f"{path}: unknown kind of weights; give one of {', '.join(_LOADERS)}")
    try:
        _LOADERS[path.suffix](net, path)
    except RuntimeError as error:  # PyTorch's list of keys and shapes, or a broken archive
        reason = " ".join(str(error).split())
        raise ValueError(f"{path}: the weights do not fit: {reason}") from error
    except (SafetensorError, pickle.UnpicklingError, zipfile.BadZipFile, EOFError) as error:
        # What the libraries advise here is to load it unsafely.
        raise ValueError(
            f"{path}: damaged, or no plain weights ({type(error).__name__})"
        ) from error
