"""Adam with decoupled weight decay and an optional dtype of the first moment."""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from funmatch.optim.decay import decayed


class Adam(torch.optim.AdamW):
    """`torch.optim.AdamW` that stores the first moment in another dtype between steps."""

    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """One update, computed in the dtype of the parameters."""
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
    lr_factors: Mapping[str, float] | None = None,
) -> torch.optim.Optimizer:
    """The paper's Adam over the trainable parameters of a module.

    Args:
        module: the network; weights of convolutions and linear layers decay, norms and biases do
            not.
        lr: learning rate at schedule multiplier s = 1, positive.
        wd: fraction of a weight that one step at s = 1 removes; independent of lr.
        betas: decay rates of the two moments.
        lr_factors: factor of the learning rate of a submodule, by its name.
        eps: added to the square root of the second moment.
        momentum_dtype: dtype in which the first moment is stored; None for that of the parameters.

    Raises:
        ValueError: lr is not positive or wd is negative.

    Source: Beyer et al. 2022, appendix C and the released code.
    """
    groups = [
        {**group, "momentum_dtype": momentum_dtype} for group in decayed(module, lr, wd, lr_factors)
    ]
    return Adam(groups, lr=lr, betas=betas, eps=eps)
