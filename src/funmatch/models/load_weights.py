"""Loads the weights of a network: released weights by name, from timm's hub, or from a file."""

import pickle
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor, nn

from funmatch.models import bit, efficientnet_lite, heads, pretrained, timm_models

HEADS = ("keep", "zero")
INCLUDED = "included"  # the builder of the network has loaded its weights


def load(net: nn.Module, weights: str | Path, *, head: str = "keep") -> None:
    """Loads weights into a network, in place.

    Args:
        net: the network; unchanged if the weights do not fit.
        weights: a path; a name in `pretrained.WEIGHTS` (downloaded if it is not in the cache);
            "hub" for timm's weights of a network of `timm_models.build`; or "included" to keep
            the weights of `net`.
        head: "keep" to load the classifier too, "zero" to ignore it, whatever its size, and set
            the classifier to zero.

    Raises:
        ValueError: the weights are unknown, cannot be downloaded, are damaged, or do not fit the
            network.
    """
    if head not in HEADS:
        raise ValueError(f"head={head}: choose {' or '.join(HEADS)}")
    if weights == INCLUDED:
        return
    if weights == "hub":
        _fit(net, timm_models.hub_state_dict(net), "weights=hub", head)
        return
    path = pretrained.fetch(str(weights)) if weights in pretrained.NAMES else Path(weights)
    if path.suffix not in _LOADERS:
        raise ValueError(
            f"{path}: unknown format of weights; give a file, one of {', '.join(_LOADERS)}, "
            f"or one of {', '.join(pretrained.NAMES)}"
        )
    if not path.is_file():
        raise ValueError(f"{path}: no such file; give a file of weights")
    _LOADERS[path.suffix](net, path, head=head)


def _safetensors(net: nn.Module, path: Path, *, head: str) -> None:
    try:
        state = safetensors.torch.load_file(path)
    except (SafetensorError, OSError) as error:
        raise _damaged(path, error) from error
    _fit(net, state, str(path), head)


def _state_dict(net: nn.Module, path: Path, *, head: str) -> None:
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except (RuntimeError, pickle.UnpicklingError, zipfile.BadZipFile, EOFError) as error:
        # torch's own message suggests weights_only=False, which is unsafe.
        raise _damaged(path, error) from error
    if not isinstance(state, Mapping):
        raise ValueError(f"{path}: damaged, or not a state dict (a {type(state).__name__})")
    if efficientnet_lite.is_release(state):
        state = efficientnet_lite.renamed(state, net.state_dict())
    _fit(net, state, str(path), head)


_LOADERS: dict[str, Callable[..., None]] = {
    ".safetensors": _safetensors,
    ".npz": bit.load_npz,
    ".pt": _state_dict,
    ".pth": _state_dict,
}


def _fit(net: nn.Module, state: Mapping[str, Tensor], label: str, head: str) -> None:
    """Loads a state dict whose names and shapes must equal those of the network."""
    ignored = tuple(f"{name}." for name in heads.names(net)) if head == "zero" else ()
    given = {name: value for name, value in state.items() if not name.startswith(ignored)}
    needed = {n: value for n, value in net.state_dict().items() if not n.startswith(ignored)}
    faults = [f"weight {name} is missing" for name in needed if name not in given]
    faults += [f"the network has no weight {name}" for name in given if name not in needed]
    faults += [
        f"{name} has shape {tuple(given[name].shape)}, the network needs {tuple(value.shape)}"
        for name, value in needed.items()
        if name in given and given[name].shape != value.shape
    ]
    if faults:
        more = f" (and {len(faults) - 1} more)" if len(faults) > 1 else ""
        raise ValueError(f"{label}: the weights do not fit: {faults[0]}{more}")
    net.load_state_dict(given, strict=not ignored)
    if ignored:
        heads.zero(net)


def _damaged(path: Path, error: Exception) -> ValueError:
    return ValueError(f"{path}: damaged, or not a state dict ({type(error).__name__})")
