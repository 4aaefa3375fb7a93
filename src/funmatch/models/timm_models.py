"""Networks of timm, with a zero head and optionally GroupNorm instead of BatchNorm."""

from collections.abc import Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import timm
import torch
from huggingface_hub import try_to_load_from_cache
from timm.layers.norm_act import BatchNormAct2d, GroupNormAct
from timm.models import get_pretrained_cfg
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from funmatch.models import heads

_NORMS = ("batch", "group")
_DEFAULT_CROP_PCT = 0.875  # side of the crop / shorter side, for networks that do not specify it
_EXAMPLES = {
    "mean": ", as [0.485,0.456,0.406] of ImageNet",
    "std": ", as [0.229,0.224,0.225] of ImageNet",
    "side": " in pixels",
    "resize": " in pixels",
}


@dataclass(frozen=True)
class _Origin:
    """Arguments with which a network was built, to build the same network with hub weights."""

    norm: str
    settings: dict[str, Any]


def build(
    name: str,
    *,
    num_classes: int,
    norm: str = "batch",
    groups: int = 8,
    side: int | None = None,
    **settings: Any,
) -> nn.Module:
    """Builds a network of timm with random weights and a zero head.

    Args:
        name: name in timm, with a tag of weights (`resnet18.a1_in1k`) or without.
        num_classes: number of outputs of the head.
        norm: "batch" for the original network, "group" to replace BatchNorm by GroupNorm.
        groups: number of groups of each GroupNorm; ignored for norm="batch".
        side: side of the views, pixels; used for networks with a fixed input size, ignored for
            others.
        settings: further arguments of `timm.create_model`, such as in_chans or drop_path_rate.

    Raises:
        ValueError: unknown name, tag or norm; the network has no BatchNorm2d to replace; or the
            number of channels of a layer is not divisible by `groups`.

    Source: GroupNorm for students, Beyer et al. 2022, sec. 4.
    """
    if norm not in _NORMS:
        raise ValueError(f"norm={norm}: choose {' or '.join(_NORMS)}")
    if not _is_known(name):
        known = [*timm.list_models(), *timm.list_pretrained()]
        near = get_close_matches(name, known, n=3)
        hint = f"did you mean {' or '.join(near)}?" if near else "see timm.list_models()"
        raise ValueError(f"name={name}: timm has no such model; {hint}")
    if side is not None and _fixed_side(name):
        settings = {"img_size": side, **settings}
    net: Any = timm.create_model(name, num_classes=num_classes, **settings)
    if not hasattr(net, "get_classifier"):
        raise ValueError(f"name={name}: has no classifier; choose another model")
    if norm == "group":
        _replace_batch_norm(net, groups, name)
    heads.zero(net)
    net.origin = _Origin(norm, {"model_name": name, **settings})
    return net


def hub_state_dict(net: nn.Module) -> dict[str, Tensor]:
    """State dict of the pretrained weights on timm's hub for a network of `build`.

    It includes the classifier of the pretrained network, whatever its number of classes.

    Raises:
        ValueError: the network does not come from `build`, its BatchNorm was replaced, or the hub
            has no weights for it or cannot be reached.
    """
    origin = getattr(net, "origin", None)
    if origin is None:
        raise ValueError("weights=hub: this network is not from timm; give a file instead")
    if origin.norm == "group":
        raise ValueError(
            "norm=group: the weights of timm's hub were trained with BatchNorm; "
            "choose norm=batch, or weights=null"
        )
    try:
        # With the same settings: timm adapts weights that depend on input size or channels.
        source = timm.create_model(**origin.settings, pretrained=True)
    except Exception as error:  # timm, huggingface_hub and the HTTP library raise their own types
        reason = " ".join(str(error).split()).rstrip(".") or type(error).__name__
        raise ValueError(
            f"weights=hub: no weights for {origin.settings['model_name']} ({reason}); "
            "give a file instead, as in teacher.weights=PATH"
        ) from error
    return source.state_dict()


def timm_equivalent(net: nn.Module) -> tuple[str, dict[str, Any]] | None:
    """Name and arguments of `timm.create_model` that build the same network; None if unknown."""
    origin = getattr(net, "origin", None)
    if isinstance(origin, _Origin) and origin.norm == "batch":
        arguments = dict(origin.settings)
        name = arguments.pop("model_name").partition(".")[0]  # the tag names other weights
        return name, arguments
    return getattr(net, "timm_equivalent", None)


def is_available(net: nn.Module) -> bool:
    """Returns True if timm's hub weights for a network of `build` are in the local cache."""
    spec: Any = getattr(net, "pretrained_cfg", {})
    if repository := spec.get("hf_hub_id"):
        files = (spec.get("hf_hub_filename"), "model.safetensors", "pytorch_model.bin")
        paths = (try_to_load_from_cache(repository, file) for file in files if file)
        return any(isinstance(path, str) for path in paths)
    name = str(spec.get("url")).rpartition("/")[2]
    return (Path(torch.hub.get_dir()) / "checkpoints" / name).is_file()


def resolve_input_spec(
    net: nn.Module,
    *,
    mean: Sequence[float] | None,
    std: Sequence[float] | None,
    side: int | None,
    resize: int | None,
) -> dict[str, Any]:
    """Input specification of a network: normalisation and sizes, with defaults of the network.

    Args:
        net: the network; only networks of timm and exported models with metadata have defaults.
        mean: per channel, of pixels in [0, 1]; None for the default of the network.
        std: per channel, of pixels in [0, 1]; None for the default of the network.
        side: side of the views, pixels; None for the default of the network.
        resize: shorter side of an image before the centre crop of an evaluation view, pixels; None
            for side / crop_pct, where crop_pct is that of the network, or 0.875.

    Returns:
        mean, std, side and resize, as arguments of `network.Network`.

    Raises:
        ValueError: a value is None and the network has no default.
    """
    given = {"mean": mean, "std": std, "side": side, "resize": resize}
    defaults = _input_defaults(net)
    spec = {key: defaults.get(key) if value is None else value for key, value in given.items()}
    if spec["resize"] is None and spec["side"] is not None:
        spec["resize"] = round(spec["side"] / defaults.get("crop_pct", _DEFAULT_CROP_PCT))
    for key, value in spec.items():
        if value is None:
            raise ValueError(
                f"{key}=null: the network has no default for it; give a value{_EXAMPLES[key]}"
            )
    return spec


def _input_defaults(net: nn.Module) -> dict[str, Any]:
    """mean, std, side and crop_pct of a timm network; the `input_spec` of an exported model."""
    cfg: Any = getattr(net, "pretrained_cfg", None)
    if cfg is None:
        return getattr(net, "input_spec", {})
    side = cfg["input_size"][-1]
    normalisation = {key: list(cfg[key]) for key in ("mean", "std")}
    return {**normalisation, "side": side, "crop_pct": cfg["crop_pct"]}


def _is_known(name: str) -> bool:
    try:
        get_pretrained_cfg(name)
    except RuntimeError:  # the model has no weights with this tag
        return False
    return timm.is_model(name)


def _fixed_side(name: str) -> bool:
    spec = get_pretrained_cfg(name)
    return spec is not None and spec.fixed_input_size


def _replace_batch_norm(net: nn.Module, groups: int, name: str) -> None:
    """Replaces every BatchNorm2d by GroupNorm with the same activation and initial weights."""
    norms = [
        (parent, child, module)
        for parent in net.modules()
        for child, module in parent.named_children()
        if isinstance(module, _BatchNorm)
    ]
    if not norms:
        raise ValueError(f"norm=group: {name} has no BatchNorm to replace; choose norm=batch")
    for parent, child, module in norms:
        if not isinstance(module, nn.BatchNorm2d):
            raise ValueError(
                f"norm=group: {name} contains {type(module).__name__}; choose norm=batch"
            )
        if module.num_features % groups:
            raise ValueError(
                f"groups={groups}: does not divide the {module.num_features} channels of a layer "
                f"of {name}"
            )
        setattr(parent, child, _group_norm(module, groups))


def _group_norm(norm: nn.BatchNorm2d, groups: int) -> nn.GroupNorm:
    channels = norm.num_features
    new: nn.GroupNorm
    if isinstance(norm, BatchNormAct2d):
        new = GroupNormAct(channels, groups, affine=False, apply_act=False)
        new.drop, new.act = norm.drop, norm.act
    else:
        new = nn.GroupNorm(groups, channels, affine=False)
    # Reuse the parameters: some networks initialise the last norm of a residual branch to zero.
    new.affine, new.weight, new.bias = norm.affine, norm.weight, norm.bias
    return new
