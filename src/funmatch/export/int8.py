"""Export to ONNX in 8 bits: a quarter of the size, faster on processors with int8 instructions.

Static post-training quantisation: weights per channel, activations calibrated on training images.
"""

import logging
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from torch import Tensor

from funmatch.export import onnx
from funmatch.models.network import Network

FILE = "student.int8.onnx"


def write(
    network: Network, folder: Path, metadata: dict[str, Any], views: Iterable[Tensor]
) -> None:
    """Writes student.int8.onnx, with activations calibrated on the views."""
    from onnxruntime.quantization import (
        CalibrationDataReader,
        QuantFormat,
        QuantType,
        quant_pre_process,
        quantize_static,
    )

    class Views(CalibrationDataReader):  # type: ignore[misc]  # untyped base class
        def __init__(self) -> None:
            self._batches: Iterator[Tensor] = iter(views)

        def get_next(self) -> dict[str, Any] | None:
            batch = next(self._batches, None)
            return None if batch is None else {"pixels": batch.float().numpy()}

    logging.getLogger().setLevel(logging.ERROR)  # onnxruntime logs to the root logger
    onnx.write(network, folder, metadata, views)
    full, prepared = folder / onnx.FILE, folder / "prepared.onnx"
    quant_pre_process(str(full), str(prepared))
    quantize_static(
        str(prepared),
        str(folder / FILE),
        Views(),
        quant_format=QuantFormat.QDQ,
        op_types_to_quantize=[
            "Conv",
            "Gemm",
            "MatMul",
        ],  # they take most of the time; norms stay in float32
        per_channel=True,
        activation_type=QuantType.QUInt8,
        weight_type=QuantType.QInt8,
    )
    for path in (full, prepared):
        path.unlink()
