"""Export to a `torch.export` program, .pt2, for PyTorch without this package."""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.export import Dim, ExportedProgram

from funmatch.export import inference_model
from funmatch.models.exported import META
from funmatch.models.network import Network

FILE = "student.pt2"


def program(network: Network) -> ExportedProgram:
    """The inference model of a student as an exported program for any batch size."""
    shapes = {"pixels": {0: Dim("batch", min=1)}}
    arguments = (inference_model.example(network),)
    return torch.export.export(
        inference_model.InferenceModel(network), arguments, dynamic_shapes=shapes
    )


def write(
    network: Network, folder: Path, metadata: dict[str, Any], views: Iterable[Tensor]
) -> None:
    """Writes student.pt2, a program for any batch size."""
    torch.export.save(program(network), folder / FILE, extra_files={META: json.dumps(metadata)})
