"""`torch.compile` for one batch size and mode of a network, with a fallback to eager execution."""

import logging

import torch
from torch import Tensor, nn

_log = logging.getLogger(__name__)

_MAX_COMPILED_NETWORKS = 256  # in one process


class Compiled:
    """Calls a compiled network for batches of one size, and the eager network for all others.

    Compiling a second shape would take minutes for a single call. If the compiler fails, the
    network is used without it.

    Args:
        net: maps images [B, channels, S, S] to logits [B, C].
        rows: batch size for which it is compiled.
        training: mode of the network, train or eval, for which it is compiled.
    """

    def __init__(self, net: nn.Module, *, rows: int, training: bool) -> None:
        self._net, self._compiled_for = net, (rows, training)
        self._fast = torch.compile(net, dynamic=False)
        self._tried = False
        # Dynamo counts networks of one class as recompilations of one function.
        limits = torch._dynamo.config
        limits.recompile_limit = max(limits.recompile_limit, _MAX_COMPILED_NETWORKS)

    def __call__(self, images: Tensor) -> Tensor:
        """Args: images [B, channels, S, S]. Returns: logits [B, C]."""
        if (len(images), self._net.training) != self._compiled_for:
            return self._net(images)
        if self._tried:
            return self._fast(images)
        self._tried = True
        try:
            # Compiles the backward pass too, at a point where a failure can still be handled.
            with torch._functorch.config.patch(force_non_lazy_backward_lowering=True):
                return self._fast(images)
        except torch.OutOfMemoryError:
            raise
        except Exception as error:  # the compiler raises many types
            reason = f"{type(error).__name__}: {error}".splitlines()[0]
            name = type(self._net).__name__
            _log.warning("  compile: %s runs without torch.compile (%s)", name, reason)
            self._fast = self._net
            return self._net(images)
