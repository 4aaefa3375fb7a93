"""Checkpoint files of a run: names, digests and integrity checks.

Each file contains the state after a step. Its last bytes are the SHA-256 digest of the bytes before
them, so that damage is detected before a run resumes from it. Nothing here imports torch.
"""

import hashlib
import re
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import BinaryIO

from funmatch.runtime import atomic_files

_DIGEST_BYTES = 64  # SHA-256 in hex
_NAME = re.compile(r"step-(\d{8,})\.ckpt")


class Checkpoints:
    """The folder of a run's checkpoints.

    Args:
        folder: `logs/<name>/<run>/checkpoints`.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def path(self, step: int) -> Path:
        """Path of the checkpoint after a step."""
        return self.folder / f"step-{step:08}.ckpt"

    def all(self) -> list[Path]:
        """All existing checkpoints, newest first."""
        checkpoints = [
            path for path in self.folder.glob("step-*.ckpt") if _NAME.fullmatch(path.name)
        ]
        return sorted(checkpoints, key=step, reverse=True)

    def newest(self, log: Callable[[str], object]) -> Path | None:
        """The newest intact checkpoint; None if there are no checkpoints.

        Newer damaged checkpoints are renamed to `.damaged`.

        Args:
            log: called with a message for each damaged checkpoint.

        Raises:
            ValueError: all checkpoints are damaged.
        """
        existing = self.all()
        intact = next((path for path in existing if is_intact(path)), None)
        if intact is None and existing:
            raise ValueError(
                f"{self.folder}: all checkpoints are damaged; restart the run with resume=never"
            )
        for path in existing[: existing.index(intact) if intact else 0]:
            log(f"{path} is damaged (its checksum differs); using {intact} instead")
            with suppress(FileNotFoundError):  # another rank has renamed it
                path.replace(path.with_suffix(".damaged"))
        return intact

    def keep(self, number: int) -> None:
        """Removes all but the newest `number` checkpoints."""
        for path in self.all()[number:]:
            path.unlink()

    def clear(self) -> None:
        """Removes all checkpoints, damaged ones too."""
        for path in self.folder.glob("step-*"):
            path.unlink()


def step(path: Path) -> int:
    """Step after which a checkpoint was written, from its file name."""
    match = _NAME.fullmatch(path.name)
    assert match is not None
    return int(match[1])


def resolve_checkpoint(path: Path) -> Path:
    """The checkpoint at a path: the file itself, or the newest checkpoint of a run directory.

    Raises:
        ValueError: the checkpoint does not exist.
    """
    if _NAME.fullmatch(path.name):
        # With at least two parents: callers take the second as the directory of the run.
        candidates = [path if len(path.parts) > 2 else path.absolute()]
    else:
        candidates = Checkpoints(path / "checkpoints").all()
    if not (candidates and candidates[0].is_file()):
        raise ValueError(
            f"resume={path}: no checkpoint found; give the directory of a run or one of its "
            "checkpoints, or choose auto or never"
        )
    return candidates[0]


def write(path: Path, save: Callable[[BinaryIO], object]) -> None:
    """Writes a checkpoint atomically, with its digest as the comment of the zip archive.

    Readers such as `torch.load` ignore the comment.

    Args:
        path: path of the checkpoint.
        save: function that writes a zip archive without a comment to a file.
    """

    def save_with_digest(file: BinaryIO) -> None:
        save(file)
        file.seek(-2, 2)
        file.write(_DIGEST_BYTES.to_bytes(2, "little"))
        file.write(_digest(file, file.tell()))

    atomic_files.write(path, save_with_digest)


def digest(path: Path) -> str:
    """The digest stored in a checkpoint, which identifies its state; it is not verified."""
    with path.open("rb") as file:
        file.seek(max(0, file.seek(0, 2) - _DIGEST_BYTES))
        return file.read().decode(errors="replace")


def is_intact(path: Path) -> bool:
    """Returns True if a checkpoint matches its digest."""
    try:
        with path.open("rb") as file:
            size = file.seek(0, 2)
            return size > _DIGEST_BYTES and _digest(file, size - _DIGEST_BYTES) == file.read()
    except OSError:  # such as a bad sector
        return False


def _digest(file: BinaryIO, size: int) -> bytes:
    """SHA-256 in hex of the first `size` bytes; leaves the file positioned after them."""
    digest = hashlib.sha256()
    file.seek(0)
    while size and (part := file.read(min(size, 2**20))):
        digest.update(part)
        size -= len(part)
    return digest.hexdigest().encode()
