"""Classifiers that somebody has exported, as a file that needs no source code to run."""

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
META = "funmatch.json"  # what our own files say of their input
# What an archive of torch.export holds: in lower case, for torch looks names up in any.
_PLAIN = re.compile(
    r"archive_format|archive_version|byteorder|version|\.format_version"
    r"|\.data/(serialization_id|version)"
    r"|models/model\.json|data/weights/(weight_\d+|model_weights_config\.json)"
    r"|data/constants/(tensor_\d+|model_constants_config\.json)"
    r"|data/sample_inputs/model\.pt|extra/.*"
)
_Run = Callable[[Tensor], Tensor]


class ExportedModel(nn.Module):
    """An exported classifier, as a network that cannot learn.

    It computes in the precision that it was exported in, whatever that around it is. Files of one
    batch size take batches of any.

    Args:
        path: .onnx (with onnxruntime), .pt2 (`torch.export.save`), .pt or .ts (TorchScript); it
            maps images [B, channels, S, S] to logits [B, C].
        output: what it gives: "logits" or "probabilities".

    Raises:
        ValueError: the file is not there, of another kind, damaged, or needs what is not installed.
    """

    def __init__(self, path: str | Path, *, output: str = "logits") -> None:
        super().__init__()
        if output not in ("logits", "probabilities"):
            raise ValueError(f"output={output}: choose logits or probabilities")
        self._path, self._output = Path(path), output
        self._load = _opened(self._path)
        self._device = torch.device("cpu")
        with _explained(self._path):
            self._run, self.rows, self.said = self._load(self._device)
        digest, self.bytes = hashlib.sha256(), 0
        for part in atomic_files.onnx_parts(self._path):
            self.bytes += part.stat().st_size
            with part.open("rb") as file:
                digest.update(hashlib.file_digest(file, "sha256").digest())
        self._digest = digest.hexdigest()

    def forward(self, images: Tensor) -> Tensor:
        """Args: images [B, channels, S, S]. Returns: logits [B, C]."""
        if images.device != self._device:
            self._run, self.rows, self.said = self._load(images.device)
            self._device = images.device
        given = images.float()
        found = torch.cat([self._run(piece) for piece in self._pieces(given)])[: len(given)]
        if self._output == "probabilities":
            found = found.clamp_min(torch.finfo(torch.float32).tiny).log()
        return found.to(images.dtype)

    def takes(self, device: torch.device) -> bool:
        """Whether it computes on a device itself, or on the CPU for it."""
        if device.type == "cpu" or self._path.suffix != ".onnx":
            return True
        return device.type == "cuda" and _CUDA in _providers()

    def extra_repr(self) -> str:
        """What a fingerprint is made of: there are no weights to look at."""
        return f"sha256={self._digest}, output={self._output}"

    def _pieces(self, images: Tensor) -> Iterator[Tensor]:
        """As large as the file takes them; the last is filled up with its first image."""
        if self.rows is None:
            yield images.contiguous()
            return
        for piece in torch.split(images, self.rows):
            missing = self.rows - len(piece)
            yield torch.cat([piece, piece[:1].expand(missing, -1, -1, -1)]).contiguous()


def _opened(path: Path) -> Callable[[torch.device], tuple[_Run, int | None, dict[str, Any]]]:
    """What runs a file on a device, the batch size it is made for, and what it says of itself."""
    if path.suffix not in KINDS:
        raise ValueError(f"{path}: unknown kind of program; give a file, {', '.join(KINDS)}")
    if not path.is_file():
        raise ValueError(f"{path}: no such file")
    kind = {".onnx": _onnx, ".pt2": _exported}.get(path.suffix, _script)
    return lambda device: kind(path, device)


@contextmanager
def _explained(path: Path) -> Iterator[None]:
    try:
        yield
    except ImportError as error:
        raise ValueError(
            f"{path}: {error.name} is not there; pip install 'funmatch[export]'"
        ) from error
    except ValueError:
        raise
    except Exception as error:  # of whatever reads it
        reason = " ".join(str(error).split())[:160]
        raise ValueError(
            f"{path}: damaged, or no {KINDS[path.suffix]} file ({type(error).__name__}: {reason})"
        ) from error


def _onnx(path: Path, device: torch.device) -> tuple[_Run, int | None, dict[str, Any]]:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3  # errors
    options.intra_op_num_threads = torch.get_num_threads()
    _refuse_far_weights(path)
    providers = [_CUDA] if device.type == "cuda" and _CUDA in _providers() else []
    providers.append("CPUExecutionProvider")
    session = onnxruntime.InferenceSession(str(path), options, providers=providers)
    (given, *more), (wanted, *_) = session.get_inputs(), session.get_outputs()
    if more:
        raise ValueError(f"{path}: takes {1 + len(more)} inputs; a classifier takes images")

    def run(images: Tensor) -> Tensor:
        (logits,) = session.run([wanted.name], {given.name: images.cpu().numpy()})
        return torch.from_numpy(logits).to(images.device)

    return run, *_facts(given.shape, session.get_modelmeta().custom_metadata_map.get(META))


def _providers() -> list[str]:
    import onnxruntime

    return list(onnxruntime.get_available_providers())


def _refuse_far_weights(path: Path) -> None:
    """Refuses weights in files that nobody would look at to tell one network from another."""
    import onnx

    graph = onnx.load(path, load_external_data=False).graph
    told = (entry for each in graph.initializer for entry in each.external_data)
    known = {part.name for part in atomic_files.onnx_parts(path)} | {f"{path.name}.data"}
    far = {entry.value for entry in told if entry.key == "location"} - known
    if far:
        raise ValueError(
            f"{path}: keeps weights in {min(far)}; save it in one file, or with {path.name}.data"
        )


def _exported(path: Path, device: torch.device) -> tuple[_Run, int | None, dict[str, Any]]:
    _refuse_pickles(path)
    extra = {META: ""}
    with _plain_tensors_only():
        program = torch.export.load(path, extra_files=extra)
    if device.type != "cpu":
        program = move_to_device_pass(program, device)
    (given,) = program.graph_signature.user_inputs
    (node,) = (n for n in program.graph.nodes if n.name == given)
    return _hidden(program.module()), *_facts(node.meta["val"].shape, extra[META])


def _script(path: Path, device: torch.device) -> tuple[_Run, int | None, dict[str, Any]]:
    extra = {META: ""}
    program: nn.Module = torch.jit.load(  # type: ignore[no-untyped-call]
        str(path), map_location=device, _extra_files=extra
    )
    return _hidden(program.eval()), *_facts((), extra[META])


def _hidden(net: nn.Module) -> _Run:
    """From whoever turns modules into other types and modes: it computes as it was exported."""
    return lambda images: net(images)


def _facts(shape: Sequence[Any], said: str | bytes | None) -> tuple[int | None, dict[str, Any]]:
    """The batch size that a file is made for, if it is, and what it says of its input."""
    rows, side = (shape[0], shape[-1]) if shape else (None, None)
    own = {"side": side} if isinstance(side, int) else {}
    return rows if isinstance(rows, int) else None, {**own, **(json.loads(said) if said else {})}


def _refuse_pickles(path: Path) -> None:
    """Refuses archives that hold more than a graph and tensors: that may run foreign code."""
    with zipfile.ZipFile(path) as archive:
        names = [name.partition("/")[2] for name in archive.namelist()]
    foreign = [name for name in names if not _PLAIN.fullmatch(name)]
    if foreign or "archive_format" not in names or len(set(names)) < len(names):
        what = foreign[0] if foreign else "an older format"
        raise ValueError(f"{path}: refused, it holds other things than tensors ({what})")


@contextmanager
def _plain_tensors_only() -> Iterator[None]:
    """Where `torch.load` reads nothing else, whatever its caller says."""
    name = "TORCH_FORCE_WEIGHTS_ONLY_LOAD"
    before = os.environ.get(name)
    os.environ[name] = "1"
    try:
        yield
    finally:
        os.environ.pop(name)
        if before is not None:
            os.environ[name] = before
