"""A student as it is put to use: pixels in, logits out, nothing to know about."""

import copy
from typing import Any

import torch
from torch import Tensor, nn

from funmatch.models import folding
from funmatch.models.network import Network


class InferenceModel(nn.Module):
    """A network that no longer learns, with its normalisation inside.

    Args:
        network: is left as it is.
    """

    scale: Tensor
    shift: Tensor

    def __init__(self, network: Network) -> None:
        super().__init__()
        inner = copy.deepcopy(network).cpu().eval().requires_grad_(False)
        self.net = inner.net
        folding.fold(self.net)
        self.register_buffer("scale", inner.scale)
        self.register_buffer("shift", inner.shift)

    def forward(self, pixels: Tensor) -> Tensor:
        """Args: pixels float32 [B, channels, S, S] in [0, 255]. Returns: logits [B, C]."""
        return self.net(pixels * self.scale - self.shift)


def example(network: Network) -> Tensor:
    """A batch of two views, of which only the shape is of interest."""
    return torch.zeros(2, len(network.mean), network.side, network.side)


def metadata(network: Network, classes: list[str]) -> dict[str, Any]:
    """What the file says of its input, for `models.programs`, and of its output."""
    channels = len(network.mean)
    return {
        "mean": [0.0] * channels,
        "std": [1 / 255] * channels,
        "side": network.side,
        "resize": network.resize,
        "classes": classes,
    }
