"""Small convolutional networks for small images."""

import math
from collections.abc import Sequence

from torch import nn


def build(
    widths: Sequence[int], *, side: int, num_classes: int, channels: int = 1, groups: int = 4
) -> nn.Sequential:
    """Builds a small network: stride-2 convolutions with GroupNorm and ReLU, and a zero head.

    Args:
        widths: output channels of the 3x3 convolutions, divisible by `groups`.
        side: height and width of the input, pixels; the head is a linear layer over all positions.
        num_classes: number of outputs of the head.
        channels: channels of the input.
        groups: groups of each GroupNorm.

    Returns:
        A network that maps [B, channels, side, side] to logits [B, num_classes].
    """
    layers: list[nn.Module] = []
    for before, after in zip((channels, *widths), widths, strict=False):
        layers += [
            nn.Conv2d(before, after, 3, stride=2, padding=1, bias=False),
            nn.GroupNorm(groups, after),
            nn.ReLU(inplace=True),
        ]
        side = math.ceil(side / 2)
    head = nn.Linear(widths[-1] * side**2, num_classes)
    nn.init.zeros_(head.weight)
    nn.init.zeros_(head.bias)
    return nn.Sequential(*layers, nn.Flatten(), head)
