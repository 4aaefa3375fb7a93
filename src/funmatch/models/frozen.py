"""Freezing is a type, not a flag that someone may forget."""

import hashlib
from typing import Any

import torch
from torch import Tensor

from funmatch.models import folding
from funmatch.models.network import Network, Output


class Frozen:
    """A network that is only ever asked.

    It is not a `Module`: whatever holds it can neither train it nor save it nor synchronise it. It
    follows its input to the device.

    Args:
        network: is changed when it is first asked: what its weights alone decide is computed once.
        dtype: of its weights and activations; its predictions are float32.
        channels_last: memory layout of its activations.
        compiled: rows of the batches for which it is compiled, or None.
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
        self._tuning: dict[str, Any] = {"channels_last": channels_last, "compiled": compiled}
        self._fingerprint, self._device = "", torch.device("cpu")
        self.side, self.resize, self.dtype = network.side, network.resize, dtype
        self.mean, self.std = network.mean, network.std
        self._asked = False

    @torch.no_grad()
    def __call__(self, pixels: Tensor) -> Output:
        """Args: pixels [B, channels, S, S] in [0, 255]."""
        if not self._asked:
            self.fingerprint()  # of what it was before
            folding.fold(self._network.net)
            self._network.tuned(dtype=self.dtype, **self._tuning)
            self._asked = True
        if pixels.device != self._device:
            self._network.to(pixels.device)
            self._device = pixels.device
        if self.dtype == torch.float32:
            return self._network(pixels)
        with torch.autocast(pixels.device.type, enabled=False):
            said = self._network(pixels)
        features = {name: feature.float() for name, feature in said.features.items()}
        return Output(said.prediction.float(), features)

    @property
    def size(self) -> int:
        """Bytes of its weights."""
        own = sum(tensor.nbytes for tensor in self._network.state_dict().values())
        return own + int(getattr(self._network.net, "bytes", 0))

    def weights(self) -> dict[str, Tensor]:
        """Copies of its weights, by name, as far as no convolution is folded yet."""
        weights = self._network.net.named_parameters()
        return {name: weight.detach().clone() for name, weight in weights}

    def fingerprint(self) -> str:
        """A digest of the architecture, the weights and the normalisation."""
        self._fingerprint = self._fingerprint or _digest(self._network)
        return self._fingerprint


def _digest(network: Network) -> str:
    digest = hashlib.sha256(repr(network.net).encode())  # equal weights may pad otherwise
    tensors = {**network.state_dict(), **dict(network.named_buffers())}
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name}{tuple(tensor.shape)}{tensor.dtype}".encode())
        digest.update(tensor.detach().cpu().flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
