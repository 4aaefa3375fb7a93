"""Freezing is a type, not a flag that someone may forget."""

import hashlib

import torch
from torch import Tensor

from funmatch.models.network import Network, Output


class Frozen:
    """A network that is only ever asked.

    It is not a `Module`: whatever holds it can neither train it nor save it nor synchronise it. It
    follows its input to the device.
    """

    def __init__(self, network: Network) -> None:
        self._network = network.eval().requires_grad_(False)
        self._device = torch.device("cpu")
        self.side, self.resize = network.side, network.resize

    @torch.no_grad()
    def __call__(self, pixels: Tensor) -> Output:
        """Args: pixels [B, channels, S, S] in [0, 255]."""
        if pixels.device != self._device:
            self._network.to(pixels.device)
            self._device = pixels.device
        return self._network(pixels)

    def fingerprint(self) -> str:
        """A digest of the architecture, the weights and the normalisation."""
        digest = hashlib.sha256(repr(self._network.net).encode())  # equal weights may pad otherwise
        tensors = {**self._network.state_dict(), **dict(self._network.named_buffers())}
        for name, tensor in sorted(tensors.items()):
            digest.update(f"{name}{tuple(tensor.shape)}{tensor.dtype}".encode())
            digest.update(tensor.detach().cpu().flatten().view(torch.uint8).numpy().tobytes())
        return digest.hexdigest()
