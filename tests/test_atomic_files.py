"""Atomic writes, locks between processes and write_once."""

import multiprocessing
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from filelock import Timeout

from commands import ROOT
from funmatch.runtime import atomic_files


def test_write_replaces_a_file_atomically(tmp_path: Path) -> None:
    target = tmp_path / "new" / "file"
    atomic_files.write(target, "old")
    atomic_files.write(target, lambda file: file.write(b"new"))
    assert target.read_bytes() == b"new"
    assert [p.name for p in target.parent.iterdir()] == ["file"]
    mask = os.umask(0)
    os.umask(mask)
    assert target.stat().st_mode & 0o777 == 0o666 & ~mask  # as any other file of the user


def test_failed_write_leaves_the_old_file(tmp_path: Path) -> None:
    target = tmp_path / "file"
    atomic_files.write(target, "old")

    def fails(file) -> None:
        file.write(b"half of the")
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        atomic_files.write(target, fails)
    assert target.read_text() == "old"
    assert list(tmp_path.iterdir()) == [target]


def test_write_killed_midway_leaves_the_old_file(tmp_path: Path) -> None:
    target = tmp_path / "file"
    atomic_files.write(target, "old")
    code = (
        "import os, signal\nfrom pathlib import Path\nfrom funmatch.runtime import atomic_files\n"
        "def dies(file):\n"
        "    file.write(b'half'); file.flush(); os.kill(os.getpid(), signal.SIGKILL)\n"
        f"atomic_files.write(Path({str(target)!r}), dies)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT / "src")
    assert done.returncode == -signal.SIGKILL
    assert target.read_text() == "old"


def _hold(path: Path, held: multiprocessing.Event) -> None:
    with atomic_files.lock(path, wait=True):
        held.set()
        time.sleep(60)


def test_lock_is_exclusive_and_released_when_its_process_dies(tmp_path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    held = context.Event()
    holder = context.Process(target=_hold, args=(tmp_path / "lock", held))
    holder.start()
    assert held.wait(60)
    with pytest.raises(Timeout), atomic_files.lock(tmp_path / "lock", wait=False):
        pass
    holder.kill()
    holder.join()
    with atomic_files.lock(tmp_path / "lock", wait=False):
        pass


def _make(path: Path, counter: Path) -> None:
    def make() -> bytes:
        with counter.open("a") as file:
            file.write("made\n")
        time.sleep(0.5)
        return b"content"

    assert atomic_files.write_once(path, make) == b"content"


def test_write_once_runs_in_one_of_several_processes(tmp_path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    arguments = (tmp_path / "file", tmp_path / "counter")
    processes = [context.Process(target=_make, args=arguments) for _ in range(3)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
        assert process.exitcode == 0
    assert (tmp_path / "counter").read_text() == "made\n"
