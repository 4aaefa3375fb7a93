"""Weights as safetensors, laid out as timm and the Hugging Face hub lay out a model.

`timm.create_model("local-dir:FOLDER", pretrained=True)` makes the network, where timm knows it.
"""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import safetensors.torch
import timm
from torch import Tensor

from funmatch.export.inference_model import InferenceModel
from funmatch.models import load_weights, timm_models
from funmatch.models.network import Network
from funmatch.runtime import atomic_files

FILE = "model.safetensors"
CONFIG = "config.json"


def write(network: Network, folder: Path, said: dict[str, Any], views: Iterable[Tensor]) -> None:
    """Writes model.safetensors and, for a network that timm can make, config.json."""
    net = network.net
    state = {name: value.contiguous() for name, value in net.state_dict().items()}
    atomic_files.write(folder / FILE, safetensors.torch.save(state, {"format": "pt"}))
    twin = timm_models.timm_equivalent(net)
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
    atomic_files.write(folder / CONFIG, json.dumps(config, indent=2) + "\n")


def load(folder: Path, network: Network) -> InferenceModel:
    """Maps pixels [B, channels, S, S] in [0, 255] to logits [B, C].

    Args:
        folder: that was written.
        network: like the student, with weights of its own, which are replaced; the whole of its net
            where timm knows it.
    """
    if (folder / CONFIG).exists():
        network.net = timm.create_model(f"local-dir:{folder}", pretrained=True)
    else:
        load_weights.load(network.net, folder / FILE)
    return InferenceModel(network)
