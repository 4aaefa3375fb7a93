"""Atomic writes, and file locks that are released when their process ends."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO

from filelock import FileLock


def write(path: Path, content: str | bytes | Callable[[BinaryIO], object]) -> None:
    """Writes a file atomically: readers see the old or the new content, even after a crash.

    Args:
        path: the target; missing folders are created.
        content: text, bytes, or a function that writes to an open binary file.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    # In the same folder as the target: a rename is atomic only within one file system.
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("w+b") as file:
            if callable(content):
                content(file)
            else:
                file.write(content.encode() if isinstance(content, str) else content)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def write_or_remove(path: Path, content: bytes | None) -> None:
    """Writes a file atomically, or removes it if the content is None."""
    if content is None:
        path.unlink(missing_ok=True)
    else:
        write(path, content)


def onnx_parts(path: Path) -> list[Path]:
    """The existing files of an ONNX model: the file itself and its external weights, `.data`."""
    return [part for part in (path, path.with_name(f"{path.name}.data")) if part.is_file()]


def lock(path: Path, *, wait: bool) -> FileLock:
    """A lock between processes, released when its holder exits or is killed.

    Args:
        path: the lock file; missing folders are created.
        wait: block until the lock is free; otherwise acquiring a lock that another process holds
            raises `filelock.Timeout` at once.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    return FileLock(path, timeout=-1 if wait else 0)


def lock_descriptor(held: FileLock) -> int:
    """File descriptor of a lock that this process holds."""
    descriptor = held._context.lock_file_fd
    assert descriptor is not None
    return descriptor


def write_once(path: Path, make: Callable[[], bytes]) -> bytes:
    """The content of a file; the first of several concurrent processes creates it with `make`."""
    if not path.exists():
        with lock(path.with_name(f"{path.name}.lock"), wait=True):
            if not path.exists():
                write(path, make())
    return path.read_bytes()
