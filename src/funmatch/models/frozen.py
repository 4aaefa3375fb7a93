"""Freezing is a type, not a flag that someone may forget."""

import hashlib

import torch
from torch import Tensor

from funmatch.models import folding
from funmatch.models.network import Network, Output


class Frozen:
    """A network that is only ever asked.

    It is not a `Module`: whatever holds it can neither train it nor save it nor synchronise it. It
    follows its input to the device.

    Args:
        network: is changed: what its weights alone decide is computed once.
        dtype: of its weights and activations; its logits are float32.
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
        self._fingerprint = _digest(network)  # of what it was
        self._device, self.dtype = torch.device("cpu"), dtype
        self.side, self.resize = network.side, network.resize
        folding.fold(network.net)
        network.tuned(dtype=dtype, channels_last=channels_last, compiled=compiled)

    @torch.no_grad()
    def __call__(self, pixels: Tensor) -> Output:
        """Args: pixels [B, channels, S, S] in [0, 255]."""
        if pixels.device != self._device:
            self._network.to(pixels.device)
            self._device = pixels.device
        if self.dtype == torch.float32:
            return self._network(pixels)
        with torch.autocast(pixels.device.type, enabled=False):
            said = self._network(pixels)
        features = {name: feature.float() for name, feature in said.features.items()}
        return Output(said.logits.float(), features)

    def fingerprint(self) -> str:
        """A digest of the architecture, the weights and the normalisation."""
        return self._fingerprint


def _digest(network: Network) -> str:
    digest = hashlib.sha256(repr(network.net).encode())  # equal weights may pad otherwise
    tensors = {**network.state_dict(), **dict(network.named_buffers())}
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name}{tuple(tensor.shape)}{tensor.dtype}".encode())
        digest.update(tensor.detach().cpu().flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
