"""A network together with what it expects of its input."""

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
        features: by module name, those the objective asked for.
        mask: bool [B], the rows that count; None: all.
        members: (weight, prediction) of each teacher, where an objective is to sum its distances to
            them (`teacher.combine=sum`); empty where `prediction` stands for all.
    """

    prediction: Tensor
    features: dict[str, Tensor] = field(default_factory=dict)
    mask: Tensor | None = None
    members: Sequence[tuple[float, Tensor]] = ()

    def summed(self, distance: Callable[[Tensor], Tensor]) -> Tensor:
        """The weighted sum of a scalar distance over the members, or that to the prediction."""
        members = self.members or ((1.0, self.prediction),)
        return torch.stack([weight * distance(each) for weight, each in members]).sum()


class Network(nn.Module):
    """Pixels in, `Output` out: normalises the views and keeps the features that were asked for.

    Args:
        net: maps normalised images [B, channels, S, S] to predictions [B, ...].
        mean: per channel, of pixels in [0, 1].
        std: per channel.
        side: of its views, pixels.
        resize: shorter side of an image before the central crop of an evaluation view.
        features: names of the submodules of `net` whose outputs are kept.

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
        self._wanted, self._features = tuple(features), dict[str, Tensor]()
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

    def tuned(
        self,
        *,
        dtype: torch.dtype = torch.float32,
        channels_last: bool = False,
        compiled: int | None = None,
    ) -> "Network":
        """Itself, computing in another way what is the same but for the last bits.

        Args:
            dtype: of weights and activations.
            channels_last: memory layout of images and activations.
            compiled: rows of the batches for which the network is compiled; None: it is not. One
                whose features are asked for is not compiled.
        """
        self._dtype = dtype
        self._layout = torch.channels_last if channels_last else torch.contiguous_format
        self.net.to(dtype).to(memory_format=self._layout)
        if compiled is not None and self._wanted:
            name = type(self.net).__name__
            reason = "its features are asked for"
            _log.warning("  compile: %s goes on without torch.compile (%s)", name, reason)
        elif compiled is not None:
            self._compiled = Compiled(self.net, rows=compiled, training=self.training)
        return self

    def _keep(self, name: str) -> Callable[[nn.Module, Any, Tensor], None]:
        def hook(module: nn.Module, inputs: Any, output: Tensor) -> None:
            self._features[name] = output

        return hook
