"""Export formats of a student, by name."""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Protocol

from torch import Tensor

from funmatch.export import int8, onnx, timm_safetensors, torch_export
from funmatch.models.network import Network


class ExportFormat(Protocol):
    """An export format: a module with these two names.

    Attributes:
        FILE: name of the file that contains the network.
    """

    FILE: str

    def write(
        self, network: Network, folder: Path, metadata: dict[str, Any], views: Iterable[Tensor]
    ) -> None:
        """Writes `FILE` and its companions into a folder.

        Args:
            network: the student.
            folder: an existing folder.
            metadata: input specification and class names, of `inference_model.metadata`.
            views: batches of pixels [B, channels, S, S] in [0, 255], to calibrate activations;
                only int8 reads them.

        Raises:
            ImportError: a package that the format needs is not installed.
        """
        ...


FORMATS: Mapping[str, ExportFormat] = {
    "safetensors": timm_safetensors,
    "onnx": onnx,
    "torch_export": torch_export,
    "int8": int8,
}
