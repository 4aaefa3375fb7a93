"""Optimisers whose weight decay does not scale with the learning rate: Adam and SGD.

An update is w <- w - s(t) (lr u + wd w), where u is the optimiser's direction. The schedule s(t)
acts through `group["lr"]`, so the decay of a step is wd * lr_now / lr.
"""

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
    """The paper's Adam over the trainable parameters of a module.

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
    groups = [{**group, "momentum_dtype": momentum_dtype} for group in decayed(module, lr, wd)]
    return Adam(groups, lr=lr, betas=betas, eps=eps)


class SGD(torch.optim.SGD):
    """`torch.optim.SGD` whose decay is taken off the weights, not put into the momentum."""

    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """One update; the closure, which takes the gradient, sees the weights before the decay."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        with torch.no_grad():
            for group in self.param_groups:
                for parameter in group["params"] if group["decay"] else ():
                    if parameter.grad is not None:
                        parameter.mul_(1 - group["lr"] * group["decay"])
        super().step()
        return loss


def sgd(
    module: nn.Module, *, lr: float, wd: float = 0.0, momentum: float = 0.9, nesterov: bool = False
) -> torch.optim.Optimizer:
    """SGD with momentum over the trainable parameters of a module.

    Args:
        module: the weights of its convolutions and linear layers decay; norms and biases do not.
        lr: learning rate at s = 1, positive.
        wd: share of a weight that one step at s = 1 takes away.
        momentum: of the gradient, in [0, 1).
        nesterov: look ahead.

    Raises:
        ValueError: lr is not positive or wd is negative.

    Source: Kolesnikov et al. 2020 (BiT-HyperRule: momentum 0.9, no decay).
    """
    groups = [
        {"params": group["params"], "decay": group["weight_decay"]}
        for group in decayed(module, lr, wd)
    ]
    return SGD(groups, lr=lr, momentum=momentum, nesterov=nesterov)


def decayed(module: nn.Module, lr: float, wd: float) -> list[dict[str, Any]]:
    """The trainable parameters in two groups, with and without decay; empty ones are left out.

    The `weight_decay` of a group is what an optimiser that takes lr_now * weight_decay off a weight
    needs: divided by lr, wd * s(t) remains.

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
