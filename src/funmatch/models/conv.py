"""Small convolutional networks for small images."""

from collections.abc import Sequence

from torch import nn


def build(
    widths: Sequence[int], *, side: int, num_classes: int, channels: int = 1, groups: int = 4
) -> nn.Sequential:
    """3x3 convolutions that halve the side, GroupNorm, ReLU; then a zero head over all positions.

    Args:
        widths: channels of the convolutions, divisible by `groups`.
        side: of the images, pixels.
        num_classes: size of the head.
        channels: of the images.
        groups: of the normalisation.
    """
    layers: list[nn.Module] = []
    for before, after in zip((channels, *widths), widths, strict=False):
        layers += [
            nn.Conv2d(before, after, 3, stride=2, padding=1, bias=False),
            nn.GroupNorm(groups, after),
            nn.ReLU(inplace=True),
        ]
        side = -(-side // 2)
    head = nn.Linear(widths[-1] * side**2, num_classes)
    nn.init.zeros_(head.weight)
    nn.init.zeros_(head.bias)
    return nn.Sequential(*layers, nn.Flatten(), head)
