"""Parameter groups with and without decoupled weight decay.

The decay does not scale with the learning rate: an update is w <- w - s(t) (lr u + wd w), where u
is the optimiser's direction. The schedule s(t) acts through `group["lr"]`, so the decay of a
step is wd * lr_now / lr.
"""

from collections.abc import Mapping
from typing import Any

from torch import nn
from torch.nn.modules.conv import _ConvNd

_DECAYED = (_ConvNd, nn.Linear)


def decayed(
    module: nn.Module, lr: float, wd: float, lr_factors: Mapping[str, float] | None = None
) -> list[dict[str, Any]]:
    """Parameter groups of the trainable parameters, with and without decay; empty ones are omitted.

    The `weight_decay` of a group is wd / lr, for optimisers that subtract lr_now * weight_decay * w
    as AdamW does: wd * s(t) * w results.

    Args:
        module: the weights of its convolutions and linear layers decay; norms and biases do not.
        lr: learning rate at s = 1, positive.
        wd: share of a weight that one step at s = 1 takes away, whatever its learning rate.
        lr_factors: by the name of a submodule, the factor of the learning rate of its parameters;
            they are in groups of their own, with an `lr`. Of nested submodules the inner counts.

    Raises:
        ValueError: lr is not positive or wd is negative.
    """
    if not lr > 0:
        raise ValueError(f"lr must be positive, got {lr}")
    if not wd >= 0:
        raise ValueError(f"wd must not be negative, got {wd}")
    weights = {m.weight for m in module.modules() if isinstance(m, _DECAYED)}
    parameters = [p for p in module.parameters() if p.requires_grad]
    factors = dict.fromkeys(parameters, 1.0)
    for name, factor in sorted((lr_factors or {}).items(), key=lambda each: each[0].count(".")):
        own = module.get_submodule(name).parameters()
        factors |= dict.fromkeys((p for p in own if p.requires_grad), factor)
    groups = []
    for factor in dict.fromkeys((1.0, *factors.values())):
        alike = [p for p in parameters if factors[p] == factor]
        rate = {} if factor == 1.0 else {"lr": lr * factor}
        groups += [
            {
                "params": [p for p in alike if p in weights],
                "weight_decay": wd / (lr * factor),
                **rate,
            },
            {"params": [p for p in alike if p not in weights], "weight_decay": 0.0, **rate},
        ]
    return [group for group in groups if group["params"]]
