"""SGD with decoupled weight decay."""

from collections.abc import Callable, Mapping

import torch
from torch import nn

from funmatch.optim.decay import decayed


class SGD(torch.optim.SGD):
    """`torch.optim.SGD` that subtracts the decay from the weights, not through the momentum."""

    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """One update; the closure computes the gradient at the weights before the decay."""
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
    module: nn.Module,
    *,
    lr: float,
    wd: float = 0.0,
    momentum: float = 0.9,
    nesterov: bool = False,
    lr_factors: Mapping[str, float] | None = None,
) -> torch.optim.Optimizer:
    """SGD with momentum over the trainable parameters of a module.

    Args:
        module: the network; weights of convolutions and linear layers decay, norms and biases do
            not.
        lr: learning rate at schedule multiplier s = 1, positive.
        wd: fraction of a weight that one step at s = 1 removes.
        momentum: decay rate of the running sum of gradients, in [0, 1).
        nesterov: use Nesterov momentum.
        lr_factors: factor of the learning rate of a submodule, by its name.

    Raises:
        ValueError: lr is not positive or wd is negative.

    Source: Kolesnikov et al. 2020 (BiT-HyperRule: momentum 0.9, no decay).
    """
    groups = [
        # PyTorch's own decay, in the momentum, stays 0.
        {"decay": group.pop("weight_decay"), **group}
        for group in decayed(module, lr, wd, lr_factors)
    ]
    return SGD(groups, lr=lr, momentum=momentum, nesterov=nesterov)
