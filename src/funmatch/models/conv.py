"""Small convolutional networks for small images."""

from collections.abc import Sequence

from torch import nn


def build(
    widths: Sequence[int], *, num_classes: int, channels: int = 1, groups: int = 4
) -> nn.Sequential:
    """3x3 convolutions with GroupNorm, each but the first halving the side, then a zero head.

    Args:
        widths: channels of the convolutions, divisible by `groups`.
        num_classes: size of the head.
        channels: of the images.
        groups: of the normalisation.
    """
    layers: list[nn.Module] = []
    for number, (before, after) in enumerate(zip((channels, *widths), widths, strict=False)):
        layers += [
            nn.Conv2d(before, after, 3, stride=2 if number else 1, padding=1, bias=False),
            nn.GroupNorm(groups, after),
            nn.ReLU(inplace=True),
        ]
    head = nn.Linear(widths[-1], num_classes)
    nn.init.zeros_(head.weight)
    nn.init.zeros_(head.bias)
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), head)
