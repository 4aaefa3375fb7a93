"""Frozen networks: a type that cannot be trained, saved or synchronised, instead of a flag."""

import hashlib
from typing import Any

import torch
from torch import Tensor

from funmatch.models import folding
from funmatch.models.network import Network, Output


class Frozen:
    """A network for inference only: eval mode, no gradient, no parameters visible to its owner.

    It is not a `Module`: an object that has one as an attribute can neither train nor save nor
    synchronise it. It moves to the device of its input.

    Args:
        network: the network; the first forward pass modifies it, since weight standardisation is
            folded into its kernels.
        dtype: dtype of weights and activations; logits and features are returned in float32.
        channels_last: use the channels_last memory format for activations.
        compiled: batch size for which it is compiled with `torch.compile`; None for none.
    """

    def __init__(
        self,
        network: Network,
        *,
        dtype: torch.dtype = torch.float32,
        channels_last: bool = False,
        compiled: int | None = None,
    ) -> None:
        self._network = network.eval().requires_grad_(False)
        self._options: dict[str, Any] = {"channels_last": channels_last, "compiled": compiled}
        self._fingerprint, self._device = "", torch.device("cpu")
        self.side, self.resize, self.dtype = network.side, network.resize, dtype
        self.mean, self.std = network.mean, network.std
        self._prepared = False

    @torch.no_grad()
    def __call__(self, pixels: Tensor) -> Output:
        """Forward pass. Args: pixels [B, channels, S, S] in [0, 255]."""
        if not self._prepared:
            self.fingerprint()  # of the original weights, before folding and conversion
            folding.fold(self._network.net)
            self._network.set_compute_options(dtype=self.dtype, **self._options)
            self._prepared = True
        if pixels.device != self._device:
            self._network.to(pixels.device)
            self._device = pixels.device
        if self.dtype == torch.float32:
            return self._network(pixels)
        with torch.autocast(pixels.device.type, enabled=False):
            output = self._network(pixels)
        features = {name: feature.float() for name, feature in output.features.items()}
        return Output(output.prediction.float(), features)

    @property
    def size(self) -> int:
        """Size of the weights in bytes."""
        own = sum(tensor.nbytes for tensor in self._network.state_dict().values())
        return own + int(getattr(self._network.net, "bytes", 0))

    def weights(self) -> dict[str, Tensor]:
        """Copies of the weights, by name.

        Raises:
            RuntimeError: it has made a forward pass, which folds and converts them.
        """
        if self._prepared:
            raise RuntimeError(
                "the weights of a frozen network must be copied before its first use"
            )
        weights = self._network.net.named_parameters()
        return {name: weight.detach().clone() for name, weight in weights}

    def fingerprint(self) -> str:
        """SHA-256 digest of architecture, weights and input normalisation, in hex."""
        self._fingerprint = self._fingerprint or _digest(self._network)
        return self._fingerprint


def _digest(network: Network) -> str:
    # The repr, since networks with equal weights may differ, for instance in their padding.
    digest = hashlib.sha256(repr(network.net).encode())
    tensors = {**network.state_dict(), **dict(network.named_buffers())}
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name}{tuple(tensor.shape)}{tensor.dtype}".encode())
        digest.update(tensor.detach().cpu().flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
