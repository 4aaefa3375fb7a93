"""Weights as safetensors, laid out as timm and the Hugging Face hub lay out a model.

`timm.create_model("local-dir:FOLDER", pretrained=True)` makes the network, where timm knows it.
"""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import safetensors.torch
import timm
from torch import Tensor, nn

from funmatch import files
from funmatch.models import zoo
from funmatch.models.network import Network

FILE = "model.safetensors"
CONFIG = "config.json"


def write(network: Network, folder: Path, said: dict[str, Any], views: Iterable[Tensor]) -> None:
    """Writes model.safetensors and, for a network that timm can make, config.json."""
    net = network.net
    state = {name: value.contiguous() for name, value in net.state_dict().items()}
    files.write(folder / FILE, safetensors.torch.save(state, {"format": "pt"}))
    twin = zoo.twin(net)
    if twin is None:
        return
    name, arguments = twin
    config = {
        "architecture": name,
        "num_classes": len(said["classes"]),
        "num_features": getattr(net, "num_features", None),
        "pretrained_cfg": {
            "custom_load": False,
            "input_size": [len(network.mean), network.side, network.side],
            "fixed_input_size": False,
            "interpolation": "bilinear",
            "crop_pct": network.side / network.resize,
            "crop_mode": "center",
            "mean": list(network.mean),
            "std": list(network.std),
            "num_classes": len(said["classes"]),
        },
        "label_names": said["classes"],
        **({"model_args": arguments} if arguments else {}),
    }
    files.write(folder / CONFIG, json.dumps(config, indent=2) + "\n")


def load(folder: Path, network: Network) -> nn.Module:
    """Maps pixels [B, channels, S, S] in [0, 255] to logits [B, C].

    Args:
        folder: that was written.
        network: like the student; its normalisation, and its structure where timm does not know it.
    """
    state = safetensors.torch.load_file(folder / FILE)
    if (folder / CONFIG).exists():
        net: nn.Module = timm.create_model(f"local-dir:{folder}", pretrained=True)
    else:
        net = network.net
        net.load_state_dict(state)
    twin = Network(
        net, mean=network.mean, std=network.std, side=network.side, resize=network.resize
    )
    return _Logits(twin).eval()


class _Logits(nn.Module):
    def __init__(self, network: Network) -> None:
        super().__init__()
        self._network = network

    def forward(self, pixels: Tensor) -> Tensor:
        return self._network(pixels).logits
