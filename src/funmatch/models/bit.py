"""BiT ResNet-v2, and a loader of the authors' released .npz weights.

The network is timm's: pre-activation, GroupNorm of 32 groups, weight-standardised convolutions.
"""

import zipfile
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from timm.layers.std_conv import StdConv2d
from timm.models.resnetv2 import ResNetV2
from torch import Tensor

from funmatch.models import heads

# timm's stem types: '' pads the root max-pool with -inf, 'fixed' with zeros.
_STEMS = {"infinite": "", "zero": "fixed"}
_TIMM_NAMES: dict[tuple[tuple[int, ...], float], str] = {
    ((3, 4, 6, 3), 1): "resnetv2_50x1_bit",
    ((3, 4, 6, 3), 3): "resnetv2_50x3_bit",
    ((3, 4, 23, 3), 1): "resnetv2_101x1_bit",
    ((3, 8, 36, 3), 2): "resnetv2_152x2_bit",
}


def build(
    depth: Sequence[int],
    *,
    width: float = 1,
    num_classes: int,
    root_padding: str = "infinite",
) -> ResNetV2:
    """Builds a BiT ResNet-v2 with a zero head.

    Args:
        depth: blocks per stage: (3, 4, 6, 3) is ResNet-50, (3, 8, 36, 3) ResNet-152.
        width: width factor of all channels, a multiple of 0.5, since GroupNorm divides the
            narrowest layer into 32 groups.
        num_classes: number of outputs of the head.
        root_padding: padding of the root max-pool: "infinite" (minus infinity, as in the authors'
            released code and weights) or "zero" (as in timm's own BiT models).

    Raises:
        ValueError: unknown root_padding, or the width is not a positive multiple of 0.5.

    Source: Kolesnikov et al. 2020; Beyer et al. 2022, sec. 3.
    """
    if root_padding not in _STEMS:
        raise ValueError(f"root_padding must be one of {', '.join(_STEMS)}, got {root_padding!r}")
    if not width > 0 or 2 * width % 1:
        raise ValueError(f"width must be a positive multiple of 0.5, got {width}")
    model = ResNetV2(
        layers=list(depth),
        channels=tuple(256 * 2**stage for stage in range(len(depth))),
        num_classes=num_classes,
        width_factor=width,  # type: ignore[arg-type]  # halves are fine
        stem_type=_STEMS[root_padding],
        conv_layer=partial(StdConv2d, eps=1e-8),
    )
    heads.zero(model)
    if root_padding == "zero" and (name := _TIMM_NAMES.get((tuple(depth), width))):
        model.timm_equivalent = name, {}  # type: ignore[assignment]  # a plain attribute, no module
    return model


def load_npz(model: ResNetV2, path: str | Path, *, head: str = "keep") -> None:
    """Loads released .npz weights into a network of `build`, in place.

    Args:
        model: a network of the same depth, width and number of classes as the weights.
        path: .npz file with native (`block1/unit01/conv1/kernel`) or legacy
            (`resnet/block1/unit01/a/standardized_conv2d/kernel`) key names.
        head: "keep" to load the classifier from the file, "zero" to ignore it, whatever its size,
            and set the classifier to zero.

    Raises:
        ValueError: a weight is missing, unexpected or of another shape (the message names the
            key), or the file is damaged. The model is then unchanged.
        FileNotFoundError: no such file.
    """
    try:
        # Opened here, since numpy does not close a damaged archive.
        with Path(path).open("rb") as stream, np.load(stream, allow_pickle=False) as file:
            arrays = {key: file[key] for key in file.files}
    except (ValueError, TypeError, EOFError, AttributeError, zipfile.BadZipFile) as error:
        raise ValueError(
            f"{path}: damaged, or not an archive of plain arrays ({type(error).__name__})"
        ) from error
    style = _LEGACY if any(key.startswith("resnet/") for key in arrays) else _NATIVE
    weights: dict[str, Tensor] = {}
    for name, target in model.state_dict().items():
        key = _key(name, style)
        if head == "zero" and name.startswith("head."):
            arrays.pop(key, None)
            weights[name] = torch.zeros_like(target)
            continue
        if key not in arrays:
            raise ValueError(f"{path}: weight {key} is missing, for {name} of the network")
        weights[name] = _reshaped(arrays.pop(key), target, f"{path}: {key}")
    if arrays:
        raise ValueError(f"{path}: the network has no weight {', '.join(sorted(arrays))}")
    model.load_state_dict(weights)


def _reshaped(array: NDArray[np.generic], target: Tensor, label: str) -> Tensor:
    """Converts a stored array to PyTorch's layout: kernels are HWIO or [C, K], norms are 1-D."""
    shape = array.shape
    if target.ndim == 1:
        array = array.reshape(-1)
    elif array.ndim in (2, 4):  # the head of timm's network is a 1x1 convolution
        array = array.reshape((1, 1, *shape)[-4:]).transpose(3, 2, 0, 1)
    if array.shape != target.shape:
        raise ValueError(f"{label} has shape {shape}, the network needs {tuple(target.shape)}")
    return torch.from_numpy(np.array(array)).to(target.dtype)


def _key(name: str, style: dict[str, str]) -> str:
    """Key of a parameter in the .npz file: `norm.weight` is native `norm-pre-head/scale`."""
    *path, kind = name.split(".")
    affine, head = style[kind], {"weight": "kernel", "bias": "bias"}[kind]
    match path:
        case ["stem", "conv"]:
            return style["root"]
        case ["norm"]:
            return style["last_norm"].format(affine=affine)
        case ["head", "fc"]:
            return style["head"].format(head=head)
        case ["stages", stage, "blocks", block, *layer]:
            unit = f"block{int(stage) + 1}/unit{int(block) + 1:02d}"
            if layer == ["downsample", "conv"]:
                return style["projection"].format(unit=unit)
            number = int(layer[0][-1])
            return style[layer[0][:-1]].format(
                unit=unit, number=number, letter="abc"[number - 1], affine=affine
            )
    raise ValueError(f"{name} is not a parameter of a BiT ResNet-v2")


_NATIVE = {
    "root": "root_block/conv_root/kernel",
    "projection": "{unit}/conv_proj/kernel",
    "conv": "{unit}/conv{number}/kernel",
    "norm": "{unit}/gn{number}/{affine}",
    "last_norm": "norm-pre-head/{affine}",
    "head": "head/{head}",
    "weight": "scale",
    "bias": "bias",
}
_LEGACY = {
    "root": "resnet/root_block/standardized_conv2d/kernel",
    "projection": "resnet/{unit}/a/proj/standardized_conv2d/kernel",
    "conv": "resnet/{unit}/{letter}/standardized_conv2d/kernel",
    "norm": "resnet/{unit}/{letter}/group_norm/{affine}",
    "last_norm": "resnet/group_norm/{affine}",
    "head": "resnet/head/conv2d/{head}",
    "weight": "gamma",
    "bias": "beta",
}
