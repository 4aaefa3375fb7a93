"""A network behind `torch.compile`, for the one shape and mode in which it is called most."""

import logging

import torch
from torch import Tensor, nn

_log = logging.getLogger(__name__)

_NETWORKS = 256  # compiled in one process at most


class Compiled:
    """Calls a compiled network for batches of one size, and the network itself for all others.

    A second shape would be compiled for minutes to be used once. Where the compiler fails, the
    network goes on without it.

    Args:
        net: maps images to logits.
        rows: of the batches.
        training: the mode of the network in them.
    """

    def __init__(self, net: nn.Module, *, rows: int, training: bool) -> None:
        self._net, self._when = net, (rows, training)
        self._fast = torch.compile(net, dynamic=False)
        self._tried = False
        # Networks of one class count as one function that is compiled again for each.
        limits = torch._dynamo.config
        limits.recompile_limit = max(limits.recompile_limit, _NETWORKS)

    def __call__(self, images: Tensor) -> Tensor:
        """Args: images [B, channels, S, S]."""
        if (len(images), self._net.training) != self._when:
            return self._net(images)
        if self._tried:
            return self._fast(images)
        self._tried = True
        try:
            # The backward pass is compiled along: here, where there is a way out.
            with torch._functorch.config.patch(force_non_lazy_backward_lowering=True):
                return self._fast(images)
        except torch.OutOfMemoryError:
            raise
        except Exception as error:  # of the compiler's many
            reason = f"{type(error).__name__}: {error}".splitlines()[0]
            name = type(self._net).__name__
            _log.warning("  compile: %s goes on without torch.compile (%s)", name, reason)
            self._fast = self._net
            return self._net(images)
