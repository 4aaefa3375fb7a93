"""Exported classifiers (ONNX, `torch.export`, TorchScript) as modules, without source code."""

import hashlib
import json
import os
import re
import zipfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.export.passes import move_to_device_pass

from funmatch.runtime import atomic_files

KINDS = {".onnx": "ONNX", ".pt2": "torch.export", ".pt": "TorchScript", ".ts": "TorchScript"}
_CUDA = "CUDAExecutionProvider"
META = "funmatch.json"  # metadata entry with the input specification, in files of our own
# Entries of a torch.export archive without pickles. In lower case, since torch's look-up of names
# ignores the case.
_PLAIN_ENTRY = re.compile(
    r"archive_format|archive_version|byteorder|version|\.format_version"
    r"|\.data/(serialization_id|version)"
    r"|models/model\.json|data/weights/(weight_\d+|model_weights_config\.json)"
    r"|data/constants/(tensor_\d+|model_constants_config\.json)"
    r"|data/sample_inputs/model\.pt|extra/.*"
)
_Run = Callable[[Tensor], Tensor]


class ExportedModel(nn.Module):
    """An exported classifier as a module without trainable parameters.

    It computes in the precision in which it was exported, regardless of autocast. A file that was
    exported for one batch size accepts batches of any size.

    Attributes:
        rows: batch size for which the file was exported; None if it accepts any.
        input_spec: input specification that the file contains: some of mean, std, side,
            resize and classes.
        bytes: size of the file and its external weights.

    Args:
        path: .onnx (needs onnxruntime), .pt2 (`torch.export.save`), .pt or .ts (TorchScript); the
            model maps images [B, channels, S, S] to logits [B, C].
        output: output of the model: "logits" or "probabilities", whose logarithm is returned.

    Raises:
        ValueError: the file does not exist, has another format, is damaged, or needs a package
            that is not installed.
    """

    def __init__(self, path: str | Path, *, output: str = "logits") -> None:
        super().__init__()
        if output not in ("logits", "probabilities"):
            raise ValueError(f"output={output}: choose logits or probabilities")
        self._path, self._output = Path(path), output
        self._load = _loader(self._path)
        self._device = torch.device("cpu")
        with _one_line_errors(self._path):
            self._run, self.rows, self.input_spec = self._load(self._device)
        digest, self.bytes = hashlib.sha256(), 0
        for part in atomic_files.onnx_parts(self._path):
            self.bytes += part.stat().st_size
            with part.open("rb") as file:
                digest.update(hashlib.file_digest(file, "sha256").digest())
        self._digest = digest.hexdigest()

    def forward(self, images: Tensor) -> Tensor:
        """Args: images [B, channels, S, S]. Returns: logits [B, C]."""
        if images.device != self._device:
            self._run, self.rows, self.input_spec = self._load(images.device)
            self._device = images.device
        full = images.float()
        output = torch.cat([self._run(piece) for piece in self._pieces(full)])[: len(full)]
        if self._output == "probabilities":
            output = output.clamp_min(torch.finfo(torch.float32).tiny).log()
        return output.to(images.dtype)

    def takes(self, device: torch.device) -> bool:
        """Returns True if it computes on this device, False if it falls back to the CPU."""
        if device.type == "cpu" or self._path.suffix != ".onnx":
            return True
        return device.type == "cuda" and _CUDA in _providers()

    def extra_repr(self) -> str:
        """Digest of the file, for the fingerprint of the network: it has no parameters to hash."""
        return f"sha256={self._digest}, output={self._output}"

    def _pieces(self, images: Tensor) -> Iterator[Tensor]:
        """Batches of the size for which the file was exported; the last is padded with an image."""
        if self.rows is None:
            yield images.contiguous()
            return
        for piece in torch.split(images, self.rows):
            missing = self.rows - len(piece)
            yield torch.cat([piece, piece[:1].expand(missing, -1, -1, -1)]).contiguous()


def _loader(path: Path) -> Callable[[torch.device], tuple[_Run, int | None, dict[str, Any]]]:
    """Returns a function that loads the file on a device.

    Its result is the forward function, the batch size of the file (None: any) and its input
    specification.
    """
    if path.suffix not in KINDS:
        raise ValueError(f"{path}: unknown format of a model; give a file, {', '.join(KINDS)}")
    if not path.is_file():
        raise ValueError(f"{path}: no such file")
    kind = {".onnx": _onnx, ".pt2": _exported}.get(path.suffix, _script)
    return lambda device: kind(path, device)


@contextmanager
def _one_line_errors(path: Path) -> Iterator[None]:
    """Converts any error of a library that reads the file into a `ValueError` of one line."""
    try:
        yield
    except ImportError as error:
        raise ValueError(
            f"{path}: {error.name} is not installed; pip install 'funmatch[export]'"
        ) from error
    except ValueError:
        raise
    except Exception as error:  # each library raises its own types
        reason = " ".join(str(error).split())[:160]
        raise ValueError(
            f"{path}: damaged, or not a {KINDS[path.suffix]} file "
            f"({type(error).__name__}: {reason})"
        ) from error


def _onnx(path: Path, device: torch.device) -> tuple[_Run, int | None, dict[str, Any]]:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3  # errors only
    options.intra_op_num_threads = torch.get_num_threads()
    _refuse_external_weights(path)
    providers = [_CUDA] if device.type == "cuda" and _CUDA in _providers() else []
    providers.append("CPUExecutionProvider")
    session = onnxruntime.InferenceSession(str(path), options, providers=providers)
    (pixels, *more), (output, *_) = session.get_inputs(), session.get_outputs()
    if more:
        raise ValueError(f"{path}: takes {1 + len(more)} inputs; a classifier takes images only")

    def run(images: Tensor) -> Tensor:
        (logits,) = session.run([output.name], {pixels.name: images.cpu().numpy()})
        return torch.from_numpy(logits).to(images.device)

    return run, *_batch_and_spec(
        pixels.shape, session.get_modelmeta().custom_metadata_map.get(META)
    )


def _providers() -> list[str]:
    import onnxruntime

    return list(onnxruntime.get_available_providers())


def _refuse_external_weights(path: Path) -> None:
    """Refuses external weights in other files than `.data`, which the digest does not cover."""
    import onnx

    graph = onnx.load(path, load_external_data=False).graph
    entries = (entry for each in graph.initializer for entry in each.external_data)
    known = {part.name for part in atomic_files.onnx_parts(path)} | {f"{path.name}.data"}
    unknown = {entry.value for entry in entries if entry.key == "location"} - known
    if unknown:
        raise ValueError(
            f"{path}: stores weights in {min(unknown)}; save it in one file, or with "
            f"{path.name}.data"
        )


def _exported(path: Path, device: torch.device) -> tuple[_Run, int | None, dict[str, Any]]:
    _refuse_pickles(path)
    extra = {META: ""}
    with _plain_tensors_only():
        program = torch.export.load(path, extra_files=extra)
    if device.type != "cpu":
        program = move_to_device_pass(program, device)
    (name,) = program.graph_signature.user_inputs
    (node,) = (n for n in program.graph.nodes if n.name == name)
    return _closure(program.module()), *_batch_and_spec(node.meta["val"].shape, extra[META])


def _script(path: Path, device: torch.device) -> tuple[_Run, int | None, dict[str, Any]]:
    extra = {META: ""}
    program: nn.Module = torch.jit.load(  # type: ignore[no-untyped-call]
        str(path), map_location=device, _extra_files=extra
    )
    return _closure(program.eval()), *_batch_and_spec((), extra[META])


def _closure(net: nn.Module) -> _Run:
    """Hides a module in a function, so that `.to`, `.half` and `.train` do not reach it."""
    return lambda images: net(images)


def _batch_and_spec(
    shape: Sequence[Any], metadata: str | bytes | None
) -> tuple[int | None, dict[str, Any]]:
    """Batch size of the file (None: any), and its input specification from shape and metadata."""
    rows, side = (shape[0], shape[-1]) if shape else (None, None)
    own = {"side": side} if isinstance(side, int) else {}
    spec = {**own, **(json.loads(metadata) if metadata else {})}
    return rows if isinstance(rows, int) else None, spec


def _refuse_pickles(path: Path) -> None:
    """Refuses archives with entries besides graph and tensors, since pickles can run code."""
    with zipfile.ZipFile(path) as archive:
        names = [name.partition("/")[2] for name in archive.namelist()]
    foreign = [name for name in names if not _PLAIN_ENTRY.fullmatch(name)]
    if foreign or "archive_format" not in names or len(set(names)) < len(names):
        what = foreign[0] if foreign else "an older format"
        raise ValueError(f"{path}: refused, it contains more than a graph and tensors ({what})")


@contextmanager
def _plain_tensors_only() -> Iterator[None]:
    """Forces `weights_only=True` for every `torch.load` in this block."""
    name = "TORCH_FORCE_WEIGHTS_ONLY_LOAD"
    before = os.environ.get(name)
    os.environ[name] = "1"
    try:
        yield
    finally:
        os.environ.pop(name)
        if before is not None:
            os.environ[name] = before
