"""The paper's optimiser: Adam with a weight decay that does not scale with the learning rate."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd

_DECAYED = (_ConvNd, nn.Linear)


class Adam(torch.optim.AdamW):
    """`torch.optim.AdamW` that keeps the first moment in a dtype of its own between steps."""

    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """One update; the arithmetic is done in the dtype of the parameters."""
        self._cast_momentum(lambda group, parameter: parameter.dtype)
        loss = super().step(closure)
        self._cast_momentum(lambda group, parameter: group["momentum_dtype"])
        return loss

    def _cast_momentum(self, dtype: Callable[[dict[str, Any], Tensor], torch.dtype]) -> None:
        for group in self.param_groups:
            if group["momentum_dtype"] is None:
                continue
            for parameter in group["params"]:
                if state := self.state[parameter]:
                    state["exp_avg"] = state["exp_avg"].to(dtype(group, parameter))


def adam(
    module: nn.Module,
    *,
    lr: float,
    wd: float,
    betas: tuple[float, float] = (0.9, 0.999),
    eps: float = 1e-8,
    momentum_dtype: torch.dtype | None = None,
) -> torch.optim.Optimizer:
    """Adam over the trainable parameters of a module, as the paper decays its weights.

    An update is w <- w - s(t) (lr adam(g) + wd w).

    The schedule s(t) acts through `group["lr"]`, so the decay of a step is wd * lr_now / lr.

    Args:
        module: the weights of its convolutions and linear layers decay; norms and biases do not.
        lr: learning rate at s = 1, positive.
        wd: share of a weight that one step at s = 1 takes away; it does not depend on lr.
        betas: decay rates of the two moments.
        eps: added to the root of the second moment.
        momentum_dtype: dtype in which the first moment is kept; None for the parameters' own.

    Raises:
        ValueError: lr is not positive or wd is negative.

    Source: Beyer et al. 2022, appendix C and the released code.
    """
    if not lr > 0:
        raise ValueError(f"lr must be positive, got {lr}")
    if not wd >= 0:
        raise ValueError(f"wd must not be negative, got {wd}")
    decayed = {m.weight for m in module.modules() if isinstance(m, _DECAYED)}
    parameters = [p for p in module.parameters() if p.requires_grad]
    groups = [
        # AdamW takes lr_now * weight_decay off a weight: dividing by lr leaves wd * s(t).
        {"params": [p for p in parameters if p in decayed], "weight_decay": wd / lr},
        {"params": [p for p in parameters if p not in decayed], "weight_decay": 0.0},
    ]
    groups = [{**group, "momentum_dtype": momentum_dtype} for group in groups if group["params"]]
    return Adam(groups, lr=lr, betas=betas, eps=eps)
