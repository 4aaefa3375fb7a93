"""Network: a `torch.nn.Module` with its input specification, and its `Output`."""

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from funmatch.models.compiled import Compiled

_log = logging.getLogger(__name__)


@dataclass
class Output:
    """The output of a network, or of several teachers as one, for a batch.

    Attributes:
        prediction: [B, ...], as the task defines it; logits [B, C] for classification.
        features: outputs of submodules that the objective requests, by module name.
        mask: bool [B], the rows that count; None: all.
        members: (weight, prediction) of each teacher, if the objective is to sum its distances to
            them (`teacher.combine=sum`); empty otherwise.
    """

    prediction: Tensor
    features: dict[str, Tensor] = field(default_factory=dict)
    mask: Tensor | None = None
    members: Sequence[tuple[float, Tensor]] = ()

    def summed(self, distance: Callable[[Tensor], Tensor]) -> Tensor:
        """Weighted sum of a scalar distance over the members; without any, to the prediction."""
        members = self.members or ((1.0, self.prediction),)
        return torch.stack([weight * distance(each) for weight, each in members]).sum()


class Network(nn.Module):
    """Maps pixels to an `Output`: normalises the views and returns the requested features.

    Args:
        net: maps normalised images [B, channels, S, S] to predictions [B, ...].
        mean: per channel, of pixels in [0, 1].
        std: per channel, of pixels in [0, 1].
        side: side of its views, pixels.
        resize: shorter side of an image before the central crop of an evaluation view.
        features: names of the submodules of `net` whose outputs are returned.

    Raises:
        ValueError: a feature is no submodule of `net`.
    """

    scale: Tensor
    shift: Tensor

    def __init__(
        self,
        net: nn.Module,
        *,
        mean: Sequence[float],
        std: Sequence[float],
        side: int,
        resize: int,
        features: Sequence[str] = (),
    ) -> None:
        super().__init__()
        self.net, self.side, self.resize = net, side, resize
        self.mean, self.std = tuple(mean), tuple(std)
        mean_, std_ = torch.tensor(list(mean)), torch.tensor(list(std))
        self.register_buffer("scale", (1 / (255 * std_))[:, None, None], persistent=False)
        self.register_buffer("shift", (mean_ / std_)[:, None, None], persistent=False)
        self._requested, self._features = tuple(features), dict[str, Tensor]()
        self._layout, self._dtype = torch.contiguous_format, torch.float32
        self._compiled: Compiled | None = None
        modules = dict(net.named_modules())
        for name in features:
            if name not in modules:
                raise ValueError(f"feature {name!r} is not a submodule of {type(net).__name__}")
            modules[name].register_forward_hook(self._keep(name))

    def forward(self, pixels: Tensor) -> Output:
        """Args: pixels [B, channels, S, S] in [0, 255], uint8 or floating point."""
        images = (pixels * self.scale - self.shift).to(self._dtype, memory_format=self._layout)
        prediction = self.net(images) if self._compiled is None else self._compiled(images)
        features, self._features = self._features, {}
        return Output(prediction, features)

    def set_compute_options(
        self,
        *,
        dtype: torch.dtype = torch.float32,
        channels_last: bool = False,
        compiled: int | None = None,
    ) -> "Network":
        """Sets how the network computes, in place; results differ in the last bits only.

        Args:
            dtype: of weights and activations.
            channels_last: use the channels_last memory format for images and activations.
            compiled: batch size for which it is compiled with `torch.compile`; None for none. A
                network with requested features is not compiled.

        Returns:
            The network itself.
        """
        self._dtype = dtype
        self._layout = torch.channels_last if channels_last else torch.contiguous_format
        self.net.to(dtype).to(memory_format=self._layout)
        if compiled is not None and self._requested:
            name = type(self.net).__name__
            reason = "its features are requested"
            _log.warning("  compile: %s runs without torch.compile (%s)", name, reason)
        elif compiled is not None:
            self._compiled = Compiled(self.net, rows=compiled, training=self.training)
        return self

    def _keep(self, name: str) -> Callable[[nn.Module, Any, Tensor], None]:
        def hook(module: nn.Module, inputs: Any, output: Tensor) -> None:
            self._features[name] = output

        return hook
