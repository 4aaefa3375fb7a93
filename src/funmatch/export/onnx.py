"""ONNX: for onnxruntime, OpenVINO, TensorRT and others."""

import json
import logging
import warnings
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from funmatch.export import inference_model, torch_export
from funmatch.models.exported import META
from funmatch.models.network import Network

FILE = "student.onnx"


def write(network: Network, folder: Path, said: dict[str, Any], views: Iterable[Tensor]) -> None:
    """Writes student.onnx: `pixels` to `logits`, of any batch size, the weights inside."""
    logging.getLogger("onnxscript").setLevel(logging.ERROR)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the exporter, about itself
        found = torch.onnx.export(
            torch_export.program(network),
            (inference_model.example(network),),
            dynamo=True,
            external_data=False,
            input_names=["pixels"],
            output_names=["logits"],
            verbose=False,
        )
    assert found is not None
    found.model.metadata_props[META] = json.dumps(said)
    found.save(folder / FILE, external_data=False)
