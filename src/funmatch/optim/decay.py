"""Parameter groups with and without decoupled weight decay.

The decay does not scale with the learning rate: an update is w <- w - s(t) (lr u + wd w), where u
is the optimiser's direction. The schedule s(t) acts through `group["lr"]`, so the decay of a
step is wd * lr_now / lr.
"""

from typing import Any

from torch import nn
from torch.nn.modules.conv import _ConvNd

_DECAYED = (_ConvNd, nn.Linear)


def decayed(module: nn.Module, lr: float, wd: float) -> list[dict[str, Any]]:
    """Parameter groups of the trainable parameters, with and without decay; empty ones are omitted.

    The `weight_decay` of a group is wd / lr, for optimisers that subtract lr_now * weight_decay * w
    as AdamW does: wd * s(t) * w results.

    Raises:
        ValueError: lr is not positive or wd is negative.
    """
    if not lr > 0:
        raise ValueError(f"lr must be positive, got {lr}")
    if not wd >= 0:
        raise ValueError(f"wd must not be negative, got {wd}")
    weights = {m.weight for m in module.modules() if isinstance(m, _DECAYED)}
    parameters = [p for p in module.parameters() if p.requires_grad]
    groups = [
        {"params": [p for p in parameters if p in weights], "weight_decay": wd / lr},
        {"params": [p for p in parameters if p not in weights], "weight_decay": 0.0},
    ]
    return [group for group in groups if group["params"]]
