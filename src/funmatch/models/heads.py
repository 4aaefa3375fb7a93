"""Heads: the final layers of a network, which map features to logits."""

from collections.abc import Callable
from typing import Any

from torch import nn
from torch.nn.modules.conv import _ConvNd


def names(net: nn.Module) -> tuple[str, ...]:
    """Names of the submodules that compute the logits; several if a network has several heads.

    These are the modules of timm's `get_classifier`, or the last module of any other network.
    """
    classifier: Callable[[], Any] | None = getattr(net, "get_classifier", None)
    head = list(net.modules())[-1] if classifier is None else classifier()
    heads = head if isinstance(head, tuple | list) else (head,)
    return tuple(name for name, module in net.named_modules() if any(module is h for h in heads))


def zero(net: nn.Module) -> None:
    """Sets the head to zero, in place, so that a new network predicts the uniform distribution.

    Source: Beyer et al. 2022, released code.
    """
    for name in names(net):
        for module in net.get_submodule(name).modules():
            if isinstance(module, nn.Linear | _ConvNd):
                nn.init.zeros_(module.weight)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
