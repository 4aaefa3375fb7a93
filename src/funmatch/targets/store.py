"""What a network said, kept in a file: a table of rows, one for each view that it was asked about.

A row counts once its checksum is there, so a process may be killed at any moment, several may write
the same table, and the next one goes on with the rows that are missing.
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

_VERSION = 1  # of rows and of the views behind them: another one is another record
_ABOUT, _ROWS, _SUMS = "about.json", "rows.bin", "sums.bin"


class Encoding(Protocol):
    """How the logits of one view become the bytes of a row."""

    def width(self, classes: int) -> int:
        """Bytes of a row."""
        ...

    def pack(self, logits: Tensor) -> Tensor:
        """Logits [N, C] on any device as rows there: uint8 [N, width]."""
        ...

    def unpack(self, rows: Tensor, classes: int) -> Tensor:
        """Rows as logits: float32 [N, C]."""
        ...


class DenseEncoding:
    """All logits, in a floating-point type."""

    def __init__(self, dtype: torch.dtype) -> None:
        self._dtype = dtype

    def width(self, classes: int) -> int:
        return classes * self._dtype.itemsize

    def pack(self, logits: Tensor) -> Tensor:
        return logits.to(self._dtype).contiguous().view(torch.uint8)

    def unpack(self, rows: Tensor, classes: int) -> Tensor:
        return rows.contiguous().view(self._dtype).float()


class TopKEncoding:
    """The k largest logits with their classes; the other classes share what is left evenly.

    The probabilities of the k classes are kept as they were, to the rounding of float16, and so is
    the sum of all others.

    Args:
        k: classes that are kept.
    """

    def __init__(self, k: int) -> None:
        self._k = k

    def width(self, classes: int) -> int:
        if not 0 < self._k < classes <= 2**15:
            raise ValueError(f"targets.form=top{self._k}: there are {classes} classes; keep fewer")
        return 4 * self._k + 2

    def pack(self, logits: Tensor) -> Tensor:
        logits = logits.float()
        top, classes = logits.topk(self._k, dim=-1)
        others = logits.scatter(-1, classes, -torch.inf)
        each = others.logsumexp(dim=-1, keepdim=True) - np.log(logits.shape[-1] - self._k)
        values = torch.cat([top, each], dim=-1).half().contiguous()
        places = classes.to(torch.int16).contiguous()
        return torch.cat([values.view(torch.uint8), places.view(torch.uint8)], dim=-1)

    def unpack(self, rows: Tensor, classes: int) -> Tensor:
        split = 2 * (self._k + 1)
        values = rows[:, :split].contiguous().view(torch.float16).float()
        places = rows[:, split:].contiguous().view(torch.int16).long()
        others = values[:, -1:].expand(-1, classes)
        return others.scatter(-1, places, values[:, :-1])


def encoding(name: str) -> Encoding:
    """float32, float16, or top10 and the like.

    Raises:
        ValueError: there is no such form.
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
        store: where records lie.
        about: what shapes the views and the network, by name; another value is another record.
        name: of the form of the rows.

    Raises:
        ValueError: there is no such form.
    """

    def __init__(self, store: Path, about: Mapping[str, Any], name: str) -> None:
        self.about = json.loads(json.dumps({"version": _VERSION, **about, "form": name}))
        self.folder = store / sha256(json.dumps(self.about).encode()).hexdigest()[:16]
        self._form, self._classes = encoding(name), 0  # until it is packed or read

    def __len__(self) -> int:
        """The rows up to the last that is recorded."""
        with suppress(FileNotFoundError):
            return (self.folder / _SUMS).stat().st_size // 4
        return 0

    def there(self, rows: slice) -> NDArray[np.bool_]:
        """Which of some rows are recorded."""
        found = np.zeros(rows.stop - rows.start, dtype=bool)
        sums = self._sums(rows)
        found[: len(sums)] = sums != 0
        return found

    def packed(self, logits: Tensor) -> Tensor:
        """Logits [N, C] as rows, where they are.

        Raises:
            ValueError: the form cannot hold so few classes.
        """
        self._classes = logits.shape[-1]
        self._form.width(self._classes)
        return self._form.pack(logits)

    def unpacked(self, rows: Tensor) -> Tensor:
        """Rows as the logits that will be read from them: float32 [N, C]."""
        return self._form.unpack(rows, self._classes)

    def write(self, first: int, rows: Tensor) -> None:
        """Keeps packed rows, on the CPU, from row `first` on.

        Raises:
            OSError: the disk is full.
        """
        if not (self.folder / _ABOUT).exists():
            about = {**self.about, "classes": self._classes}
            atomic_files.write(self.folder / _ABOUT, json.dumps(about, indent=2) + "\n")
        sums = np.array(_checksums(rows.numpy()), dtype=np.uint32)
        self._put(_ROWS, rows.numpy().tobytes(), first * rows.shape[1])
        self._put(_SUMS, sums.tobytes(), first * sums.itemsize)  # only now do the rows count

    def read(self, rows: slice) -> Tensor | None:
        """Recorded rows as logits, float32 [N, C]; or None if one of them is missing.

        Raises:
            ValueError: a row is damaged. From now on it is missing.
        """
        sums = self._sums(rows)
        if len(sums) < rows.stop - rows.start or not sums.all():
            return None
        self._classes = self._classes or json.loads((self.folder / _ABOUT).read_text())["classes"]
        width = self._form.width(self._classes)
        content = np.frombuffer(self._bytes(_ROWS, rows, width), np.uint8).reshape(-1, width)
        found = np.zeros_like(sums)
        found[: len(content)] = _checksums(content)
        if (damaged := np.flatnonzero(found != sums)).size:
            for row in damaged:
                self._put(_SUMS, bytes(sums.itemsize), int(rows.start + row) * sums.itemsize)
            first = rows.start + int(damaged[0])
            raise ValueError(
                f"{self.folder}: {damaged.size} damaged rows, the first is {first}; the same "
                "command makes them again (targets=auto in place of replay)"
            )
        return self.unpacked(torch.from_numpy(content))

    def lock(self) -> FileLock:
        """For one process that fills the record, while others wait."""
        return atomic_files.lock(self.folder.with_suffix(".lock"), wait=True)

    def nearest(self) -> str | None:
        """The key, with its values, in which the most similar record of the store differs."""
        best: list[str] | None = None
        for path in self.folder.parent.glob(f"*/{_ABOUT}"):
            try:
                there = json.loads(path.read_text())
            except (OSError, ValueError):
                continue
            differing = [
                f"{key} (there {there.get(key)}, here {value})"
                for key, value in self.about.items()
                if there.get(key) != value
            ]
            if there.get("kind") == self.about["kind"] and (
                best is None or len(differing) < len(best)
            ):
                best = differing
        return None if best is None else ", ".join(best)

    def _sums(self, rows: slice) -> NDArray[np.uint32]:
        return np.frombuffer(self._bytes(_SUMS, rows, 4), dtype=np.uint32)

    def _bytes(self, name: str, rows: slice, width: int) -> bytearray:
        """The whole rows of a file; fewer than asked for where it ends before."""
        try:
            with (self.folder / name).open("rb") as file:
                size = os.fstat(file.fileno()).st_size
                found = bytearray(max(0, min(rows.stop, size // width) - rows.start) * width)
                file.seek(rows.start * width)
                file.readinto(found)
                return found
        except FileNotFoundError:
            return bytearray()

    def _put(self, name: str, content: bytes, place: int) -> None:
        path = self.folder / name
        path.touch()
        with path.open("r+b") as file:
            file.seek(place)
            file.write(content)


def _checksums(rows: NDArray[np.uint8]) -> list[int]:
    width, content = rows.shape[1], memoryview(rows.tobytes())
    places = range(0, len(content), width)
    # 0 marks a row that is missing.
    return [zlib.crc32(content[place : place + width]) or 1 for place in places]
