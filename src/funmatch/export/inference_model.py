"""Inference model: a student with its normalisation folded in, from pixels to logits."""

import copy
from typing import Any

import torch
from torch import Tensor, nn

from funmatch.models import folding
from funmatch.models.network import Network


class InferenceModel(nn.Module):
    """A frozen copy of a network, on the CPU, that includes its input normalisation.

    Args:
        network: the network; it is not modified.
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
    """Example input for tracing: zeros [2, channels, S, S]."""
    return torch.zeros(2, len(network.mean), network.side, network.side)


def metadata(network: Network, classes: list[str]) -> dict[str, Any]:
    """Input specification and class names for the metadata of a file; `models.exported` reads it.

    With mean 0 and std 1/255, `Network` passes pixels in [0, 255] on unchanged: the file contains
    the normalisation of the student.
    """
    channels = len(network.mean)
    return {
        "mean": [0.0] * channels,
        "std": [1 / 255] * channels,
        "side": network.side,
        "resize": network.resize,
        "classes": classes,
    }
