"""Export to ONNX, for onnxruntime, OpenVINO, TensorRT and others."""

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


def write(
    network: Network, folder: Path, metadata: dict[str, Any], views: Iterable[Tensor]
) -> None:
    """Writes student.onnx, which maps `pixels` to `logits` for any batch size."""
    logging.getLogger("onnxscript").setLevel(logging.ERROR)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the exporter warns of its own deprecations
        exported = torch.onnx.export(
            torch_export.program(network),
            (inference_model.example(network),),
            dynamo=True,
            external_data=False,
            input_names=["pixels"],
            output_names=["logits"],
            verbose=False,
        )
    assert exported is not None
    exported.model.metadata_props[META] = json.dumps(metadata)
    exported.save(folder / FILE, external_data=False)
