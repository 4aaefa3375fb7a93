"""Logit store: a network's outputs in a file, a table with one row for each view.

A row is valid once its checksum is written. So a process may be killed at any moment, several may
write the same table, and the next one computes only the missing rows.
"""

import json
import os
import zlib
from collections.abc import Mapping
from contextlib import suppress
from hashlib import sha256
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from filelock import FileLock
from numpy.typing import NDArray
from torch import Tensor

from funmatch.runtime import atomic_files

_VERSION = 1  # of the format of rows, and of how views are drawn: another one is another record
_METADATA, _ROWS, _CHECKSUMS = "about.json", "rows.bin", "sums.bin"


class Encoding(Protocol):
    """Encoding of the logits of one view as the bytes of a row."""

    def width(self, classes: int) -> int:
        """Bytes of a row."""
        ...

    def encode(self, logits: Tensor) -> Tensor:
        """Encodes logits [N, C] on their device: uint8 [N, width]."""
        ...

    def decode(self, rows: Tensor, classes: int) -> Tensor:
        """Decodes rows on their device: float32 [N, C]."""
        ...


class DenseEncoding:
    """All logits, in a floating-point type."""

    def __init__(self, dtype: torch.dtype) -> None:
        self._dtype = dtype

    def width(self, classes: int) -> int:
        return classes * self._dtype.itemsize

    def encode(self, logits: Tensor) -> Tensor:
        return logits.to(self._dtype).contiguous().view(torch.uint8)

    def decode(self, rows: Tensor, classes: int) -> Tensor:
        return rows.contiguous().view(self._dtype).float()


class TopKEncoding:
    """The k largest logits with their classes; the other classes share the rest evenly.

    The probabilities of the k classes are exact up to the rounding of float16, and so is the sum of
    all others.

    Args:
        k: number of classes that are stored, k < C <= 2^15.
    """

    def __init__(self, k: int) -> None:
        self._k = k

    def width(self, classes: int) -> int:
        if not 0 < self._k < classes <= 2**15:
            raise ValueError(f"targets.form=top{self._k}: there are {classes} classes; keep fewer")
        return 4 * self._k + 2

    def encode(self, logits: Tensor) -> Tensor:
        logits = logits.float()
        top, classes = logits.topk(self._k, dim=-1)
        others = logits.scatter(-1, classes, -torch.inf)
        each = others.logsumexp(dim=-1, keepdim=True) - np.log(logits.shape[-1] - self._k)
        values = torch.cat([top, each], dim=-1).half().contiguous()
        classes = classes.to(torch.int16).contiguous()
        return torch.cat([values.view(torch.uint8), classes.view(torch.uint8)], dim=-1)

    def decode(self, rows: Tensor, classes: int) -> Tensor:
        split = 2 * (self._k + 1)
        values = rows[:, :split].contiguous().view(torch.float16).float()
        top = rows[:, split:].contiguous().view(torch.int16).long()
        others = values[:, -1:].expand(-1, classes)
        return others.scatter(-1, top, values[:, :-1])


def encoding(name: str) -> Encoding:
    """The encoding of a name: float32, float16, or top<k>, as in top10.

    Raises:
        ValueError: no encoding has this name.
    """
    if name in _DENSE:
        return DenseEncoding(_DENSE[name])
    if name.startswith("top") and name[3:].isdecimal():
        return TopKEncoding(int(name[3:]))
    raise ValueError(f"targets.form={name}: choose {', '.join(_DENSE)} or top<k>, as in top10")


_DENSE = {"float32": torch.float32, "float16": torch.float16}


class LogitStore:
    """The logits of one network for numbered views, C for each.

    Args:
        store: folder of all records.
        metadata: settings of the network and its views, by name; other values, another record.
        name: of the encoding of the rows.

    Raises:
        ValueError: no encoding has this name.
    """

    def __init__(self, store: Path, metadata: Mapping[str, Any], name: str) -> None:
        self.metadata = json.loads(json.dumps({"version": _VERSION, **metadata, "form": name}))
        self.folder = store / sha256(json.dumps(self.metadata).encode()).hexdigest()[:16]
        self._encoding, self._classes = encoding(name), 0  # known once rows are encoded or read

    def __len__(self) -> int:
        """Number of rows up to the last that is stored."""
        with suppress(FileNotFoundError):
            return (self.folder / _CHECKSUMS).stat().st_size // 4
        return 0

    def is_stored(self, rows: slice) -> NDArray[np.bool_]:
        """Whether each of some rows is stored: bool [N]."""
        stored = np.zeros(rows.stop - rows.start, dtype=bool)
        sums = self._checksums(rows)
        stored[: len(sums)] = sums != 0
        return stored

    def encode(self, logits: Tensor) -> Tensor:
        """Encodes logits [N, C] on their device: uint8 [N, width].

        Raises:
            ValueError: the encoding stores more classes than these.
        """
        self._classes = logits.shape[-1]
        self._encoding.width(self._classes)
        return self._encoding.encode(logits)

    def decode(self, rows: Tensor) -> Tensor:
        """The logits that `read` will return for encoded rows: float32 [N, C]."""
        return self._encoding.decode(rows, self._classes)

    def write(self, first: int, rows: Tensor) -> None:
        """Stores encoded rows, on the CPU, from row `first` on.

        Raises:
            OSError: the disk is full.
        """
        if not (self.folder / _METADATA).exists():
            metadata = {**self.metadata, "classes": self._classes}
            atomic_files.write(self.folder / _METADATA, json.dumps(metadata, indent=2) + "\n")
        sums = np.array(_checksums(rows.numpy()), dtype=np.uint32)
        self._write_at(_ROWS, rows.numpy().tobytes(), first * rows.shape[1])
        # After the rows: only now are they valid.
        self._write_at(_CHECKSUMS, sums.tobytes(), first * sums.itemsize)

    def read(self, rows: slice) -> Tensor | None:
        """Logits of stored rows, float32 [N, C]; or None if one of them is missing.

        Raises:
            ValueError: a row is damaged. From now on it counts as missing.
        """
        sums = self._checksums(rows)
        if len(sums) < rows.stop - rows.start or not sums.all():
            return None
        if not self._classes:
            self._classes = json.loads((self.folder / _METADATA).read_text())["classes"]
        width = self._encoding.width(self._classes)
        content = np.frombuffer(self._bytes(_ROWS, rows, width), np.uint8).reshape(-1, width)
        actual = np.zeros_like(sums)
        actual[: len(content)] = _checksums(content)
        if (damaged := np.flatnonzero(actual != sums)).size:
            for row in damaged:
                offset = int(rows.start + row) * sums.itemsize
                self._write_at(_CHECKSUMS, bytes(sums.itemsize), offset)
            first = rows.start + int(damaged[0])
            raise ValueError(
                f"{self.folder}: {damaged.size} damaged rows, the first is {first}; the same "
                "command computes them again (targets=auto in place of replay)"
            )
        return self.decode(torch.from_numpy(content))

    def lock(self) -> FileLock:
        """A lock for the one process that fills the record, while others wait."""
        return atomic_files.lock(self.folder.with_suffix(".lock"), wait=True)

    def closest_mismatch(self) -> str | None:
        """The keys, with their values, in which the most similar record of the store differs."""
        best: list[str] | None = None
        for path in self.folder.parent.glob(f"*/{_METADATA}"):
            try:
                other = json.loads(path.read_text())
            except (OSError, ValueError):
                continue
            differing = [
                f"{key} (recorded: {other.get(key)}, now: {value})"
                for key, value in self.metadata.items()
                if other.get(key) != value
            ]
            if other.get("kind") == self.metadata["kind"] and (
                best is None or len(differing) < len(best)
            ):
                best = differing
        return None if best is None else ", ".join(best)

    def _checksums(self, rows: slice) -> NDArray[np.uint32]:
        return np.frombuffer(self._bytes(_CHECKSUMS, rows, 4), dtype=np.uint32)

    def _bytes(self, name: str, rows: slice, width: int) -> bytearray:
        """Complete rows of a file; fewer than requested where the file is shorter."""
        try:
            with (self.folder / name).open("rb") as file:
                size = os.fstat(file.fileno()).st_size
                content = bytearray(max(0, min(rows.stop, size // width) - rows.start) * width)
                file.seek(rows.start * width)
                file.readinto(content)
                return content
        except FileNotFoundError:
            return bytearray()

    def _write_at(self, name: str, content: bytes, offset: int) -> None:
        path = self.folder / name
        path.touch()
        with path.open("r+b") as file:
            file.seek(offset)
            file.write(content)


def _checksums(rows: NDArray[np.uint8]) -> list[int]:
    width, content = rows.shape[1], memoryview(rows.tobytes())
    offsets = range(0, len(content), width)
    # 0 marks a row that is missing.
    return [zlib.crc32(content[offset : offset + width]) or 1 for offset in offsets]
