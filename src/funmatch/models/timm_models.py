"""Any network of timm, with a zero head and, if wanted, GroupNorm in the place of BatchNorm."""

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
_CROP = 0.875  # share of the crop in an evaluation view, where nobody says it
_AS = {
    "mean": ", as [0.485,0.456,0.406] of ImageNet",
    "std": ", as [0.229,0.224,0.225] of ImageNet",
    "side": " in pixels",
    "resize": " in pixels",
}


@dataclass(frozen=True)
class _Origin:
    """How a network was made: what its pretrained twin is made with."""

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
    """A network of timm with fresh weights and a zero head.

    Args:
        name: as timm lists it, with the tag of its weights (`resnet18.a1_in1k`) or without.
        num_classes: size of the head.
        norm: "batch" for the network as it is, "group" for GroupNorm in the place of BatchNorm.
        groups: of the GroupNorm; ignored for norm="batch".
        side: of the views, pixels, for a network that is built for one size (timm says which);
            others take any.
        settings: of `timm.create_model`, such as in_chans or drop_path_rate.

    Raises:
        ValueError: unknown name or tag, unknown norm, nothing to replace, or a number of channels
            that the groups do not divide.

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
    """The weights that timm's hub has for a network of `build`, by name, with their own classifier.

    Raises:
        ValueError: the network is not of `build`, its BatchNorm was replaced, the hub has no
            weights for it, or they cannot be fetched.
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
        # With the same settings: timm fits what depends on the side or channels of the images.
        source = timm.create_model(**origin.settings, pretrained=True)
    except Exception as error:  # of any of the libraries between here and the hub
        reason = " ".join(str(error).split()).rstrip(".") or type(error).__name__
        raise ValueError(
            f"weights=hub: no weights for {origin.settings['model_name']} ({reason}); "
            "give a file instead, as in teacher.weights=PATH"
        ) from error
    return source.state_dict()


def timm_equivalent(net: nn.Module) -> tuple[str, dict[str, Any]] | None:
    """The name and arguments by which `timm.create_model` makes the same network, if it can."""
    origin = getattr(net, "origin", None)
    if isinstance(origin, _Origin) and origin.norm == "batch":
        arguments = dict(origin.settings)
        name = arguments.pop("model_name").partition(".")[0]  # without the tag of other weights
        return name, arguments
    return getattr(net, "twin", None)


def is_available(net: nn.Module) -> bool:
    """Whether the weights of timm's hub for a network of `build` lie in the cache already."""
    spec: Any = getattr(net, "pretrained_cfg", {})
    if repository := spec.get("hf_hub_id"):
        files = (spec.get("hf_hub_filename"), "model.safetensors", "pytorch_model.bin")
        found = (try_to_load_from_cache(repository, file) for file in files if file)
        return any(isinstance(path, str) for path in found)
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
    """What a network expects of its input, where None is what it says itself.

    Args:
        net: the network; only those of timm, and programs that say it, may leave something open.
        mean: per channel, of pixels in [0, 1].
        std: per channel.
        side: of the views, pixels.
        resize: shorter side of an image before the central crop of an evaluation view, pixels;
            None for the share of the crop in it that the network names, or 0.875.

    Returns:
        The four, complete, as `network.Network` takes them.

    Raises:
        ValueError: something is open that the network does not say.
    """
    given = {"mean": mean, "std": std, "side": side, "resize": resize}
    own = _said(net)
    found = {key: own.get(key) if value is None else value for key, value in given.items()}
    if found["resize"] is None and found["side"] is not None:
        found["resize"] = round(found["side"] / own.get("crop_pct", _CROP))
    for key, value in found.items():
        if value is None:
            raise ValueError(f"{key}=null: the network does not say it; give a value{_AS[key]}")
    return found


def _said(net: nn.Module) -> dict[str, Any]:
    timms: Any = getattr(net, "pretrained_cfg", None)
    if timms is None:
        return getattr(net, "said", {})
    side = timms["input_size"][-1]
    own = {key: list(timms[key]) for key in ("mean", "std")}
    return {**own, "side": side, "crop_pct": timms["crop_pct"]}


def _is_known(name: str) -> bool:
    try:
        get_pretrained_cfg(name)
    except RuntimeError:  # a tag that is none of the model's
        return False
    return timm.is_model(name)


def _fixed_side(name: str) -> bool:
    spec = get_pretrained_cfg(name)
    return spec is not None and spec.fixed_input_size


def _replace_batch_norm(net: nn.Module, groups: int, name: str) -> None:
    """Puts GroupNorm in the place of every BatchNorm2d, with its activation and first weights."""
    found = [
        (parent, child, module)
        for parent in net.modules()
        for child, module in parent.named_children()
        if isinstance(module, _BatchNorm)
    ]
    if not found:
        raise ValueError(f"norm=group: {name} has no BatchNorm to replace; choose norm=batch")
    for parent, child, module in found:
        if not isinstance(module, nn.BatchNorm2d):
            raise ValueError(
                f"norm=group: {name} has {type(module).__name__} in it; choose norm=batch"
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
    # The same parameters: some networks start the last norm of a residual branch at zero.
    new.affine, new.weight, new.bias = norm.affine, norm.weight, norm.bias
    return new
