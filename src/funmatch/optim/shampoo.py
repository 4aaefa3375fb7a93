"""Shampoo, the second-order optimiser of the paper's appendix D.

The arithmetic is pytorch-optimizer's `ScalableShampoo`: blocks, grafting, Nesterov momentum.
Alternatives considered: torch-optimizer's Shampoo (2021) has no blocks, so that a layer of 2048
channels costs an SVD of 2048 x 2048 at each step, and no grafting, so that learning rates tuned for
Adam do not transfer; Meta's distributed-shampoo is not on PyPI.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from funmatch.optim.decay import decayed

try:
    from pytorch_optimizer import ScalableShampoo
    from pytorch_optimizer.optimizer.utils.graft import LayerWiseGrafting
except ModuleNotFoundError as error:
    raise ValueError(
        "optimizer=shampoo: needs a package that is not installed; pip install pytorch-optimizer"
    ) from error


class Shampoo(ScalableShampoo):
    """`ScalableShampoo` whose state dict contains only tensors, so that it loads `weights_only`."""

    def state_dict(self) -> dict[str, Any]:
        """The state dict, with the library's objects flattened into tensors."""
        state = super().state_dict()
        return {**state, "state": {key: _flattened(value) for key, value in state["state"].items()}}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Loads a state dict and rebuilds the library's objects from its tensors."""
        super().load_state_dict({**state_dict, "state": {}})
        for group, saved in zip(self.param_groups, state_dict["param_groups"], strict=True):
            for parameter, key in zip(group["params"], saved["params"], strict=True):
                if key in state_dict["state"]:
                    self.state[parameter] = self._rebuilt(parameter, state_dict["state"][key])

    def _rebuilt(self, parameter: nn.Parameter, tensors: dict[str, Any]) -> dict[str, Any]:
        gradient, parameter.grad = parameter.grad, torch.zeros_like(parameter)
        self.init_group({"params": [parameter], "betas": self.defaults["betas"]})
        parameter.grad = gradient
        state = self.state[parameter]
        state["momentum"].copy_(tensors["momentum"])
        for name, attributes in _TENSORS.items():
            for attribute in attributes:
                if f"{name}.{attribute}" in tensors:
                    into = getattr(state[name], attribute)
                    pairs = zip(into, tensors[f"{name}.{attribute}"], strict=True)
                    for target, source in pairs:
                        target.copy_(source)
        return state


# Attributes of the library's objects that contain tensors.
_TENSORS = {
    "pre_conditioner": ("statistics", "pre_conditioners"),
    "graft": ("momentum", "statistics"),
}


def _flattened(state: dict[str, Any]) -> dict[str, Any]:
    tensors = {
        f"{name}.{attribute}": getattr(state[name], attribute)
        for name, attributes in _TENSORS.items()
        for attribute in attributes
        if hasattr(state[name], attribute)
    }
    return {"momentum": state["momentum"], **tensors}


def shampoo(
    module: nn.Module,
    *,
    lr: float,
    wd: float,
    betas: tuple[float, float] = (0.9, 0.999),
    block_size: int = 128,
    every: int = 1,
    start: int = 1,
    lr_factors: Mapping[str, float] | None = None,
) -> torch.optim.Optimizer:
    """Shampoo over the trainable parameters of a module.

    Args:
        module: the network; weights of convolutions and linear layers decay, norms and biases do
            not.
        lr: learning rate at schedule multiplier s = 1, positive. The size of a step is that of
            RMSProp (grafting); its statistics start at zero without bias correction, so early
            steps are larger than Adam's.
        wd: fraction of a weight that one step at s = 1 removes; independent of lr.
        betas: decay rates of the momentum and of the statistics.
        block_size: largest side of a preconditioner; larger layers are split into blocks.
        every: steps between two computations of the preconditioners.
        start: step of the first preconditioned update.
        lr_factors: factor of the learning rate of a submodule, by its name.

    Raises:
        ValueError: lr is not positive or wd is negative.

    Source: Beyer et al. 2022, appendix D; Anil et al. 2020.
    """
    return Shampoo(
        decayed(module, lr, wd, lr_factors),
        lr=lr,
        betas=(betas[0], betas[1]),  # a list if it comes from a configuration
        decoupled_weight_decay=True,
        nesterov=True,
        moving_average_for_momentum=True,  # otherwise steps are ten times Adam's at the same lr
        block_size=block_size,
        preconditioning_compute_steps=every,
        start_preconditioning_step=start,
        graft_type=LayerWiseGrafting.RMSPROP,
    )
