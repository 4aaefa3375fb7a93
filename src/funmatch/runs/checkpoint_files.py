"""The checkpoints of a run: their names, their seals, and which of them are whole.

Each holds the state after a step. Its last bytes are the digest of those before them, so whoever
wants to go on knows first whether the file is what was written. Nothing here imports torch.
"""

import hashlib
import re
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import BinaryIO

from funmatch.runtime import atomic_files

_SEAL = 64  # bytes: SHA-256 in hex
_NAME = re.compile(r"step-(\d{8,})\.ckpt")


class Checkpoints:
    """The folder of a run's checkpoints.

    Args:
        folder: `logs/<name>/<run>/checkpoints`.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def path(self, step: int) -> Path:
        """Where the state after a step is kept."""
        return self.folder / f"step-{step:08}.ckpt"

    def all(self) -> list[Path]:
        """Those there are, newest first."""
        found = [path for path in self.folder.glob("step-*.ckpt") if _NAME.fullmatch(path.name)]
        return sorted(found, key=step, reverse=True)

    def newest(self, say: Callable[[str], object]) -> Path | None:
        """The newest that is whole, if there are any.

        Damaged ones that are newer are put aside under another name.

        Args:
            say: is told of each of these.

        Raises:
            ValueError: none is whole.
        """
        there = self.all()
        found = next((path for path in there if is_intact(path)), None)
        if found is None and there:
            raise ValueError(
                f"{self.folder}: no checkpoint is whole; start the run anew with resume=never"
            )
        for path in there[: there.index(found) if found else 0]:
            say(f"{path} is damaged (its checksum differs); {found} is taken instead")
            with suppress(FileNotFoundError):  # another rank was faster
                path.replace(path.with_suffix(".damaged"))
        return found

    def keep(self, number: int) -> None:
        """Removes all but the newest."""
        for path in self.all()[number:]:
            path.unlink()

    def clear(self) -> None:
        """Removes them all."""
        for path in self.folder.glob("step-*"):
            path.unlink()


def step(path: Path) -> int:
    """The step after which a checkpoint was written."""
    found = _NAME.fullmatch(path.name)
    assert found is not None
    return int(found[1])


def at(place: Path) -> Path:
    """The checkpoint that a path names: a file, or the newest of a run's directory.

    Raises:
        ValueError: there is none.
    """
    if _NAME.fullmatch(place.name):
        found = [place if len(place.parts) > 2 else place.absolute()]  # its run is two above
    else:
        found = Checkpoints(place / "checkpoints").all()
    if not (found and found[0].is_file()):
        raise ValueError(
            f"resume={place}: no checkpoint there; give the directory of a run or one of its "
            "checkpoints, or choose auto or never"
        )
    return found[0]


def write(path: Path, save: Callable[[BinaryIO], object]) -> None:
    """Writes a zip archive and seals it: the digest becomes its comment, which readers pass over.

    Args:
        path: of the checkpoint.
        save: writes the archive, without a comment.
    """

    def sealed(file: BinaryIO) -> None:
        save(file)
        file.seek(-2, 2)
        file.write(_SEAL.to_bytes(2, "little"))
        file.write(_digest(file, file.tell()))

    atomic_files.write(path, sealed)


def digest(path: Path) -> str:
    """What a checkpoint says its digest is: the same for two states only if they are one."""
    with path.open("rb") as file:
        file.seek(max(0, file.seek(0, 2) - _SEAL))
        return file.read().decode(errors="replace")


def is_intact(path: Path) -> bool:
    """Whether a checkpoint is what was written."""
    try:
        with path.open("rb") as file:
            size = file.seek(0, 2)
            return size > _SEAL and _digest(file, size - _SEAL) == file.read()
    except OSError:  # a bad sector
        return False


def _digest(file: BinaryIO, size: int) -> bytes:
    """Of the first bytes; what is read or written next comes behind them."""
    digest = hashlib.sha256()
    file.seek(0)
    while size and (part := file.read(min(size, 2**20))):
        digest.update(part)
        size -= len(part)
    return digest.hexdigest().encode()
