"""Cores, processor name, disk space and child processes of this machine."""

import ctypes
import os
import platform
import shutil
import sys
from pathlib import Path


def available_cores() -> int:
    """Number of CPU cores that this process may use."""
    affinity = getattr(os, "sched_getaffinity", None)  # not on macOS
    return len(affinity(0)) if affinity else os.cpu_count() or 1


def end_with_parent(signal: int) -> None:
    """Makes the kernel send this process a signal when its parent exits or is killed.

    Does nothing on systems other than Linux.
    """
    if sys.platform == "linux":
        set_signal_of_parent_death = 1
        ctypes.CDLL(None).prctl(set_signal_of_parent_death, int(signal))


def processor_name() -> str:
    """Model name of the CPU."""
    cpuinfo = Path("/proc/cpuinfo")
    text = cpuinfo.read_text() if cpuinfo.exists() else ""
    names = [line.partition(":")[2].strip() for line in text.splitlines() if "model name" in line]
    return names[0] if names else platform.processor() or platform.machine()


def subprocess_environment(**more: object) -> dict[str, str]:
    """Environment of a child process that imports this package.

    Args:
        more: variables to add or replace; values are converted to strings.
    """
    paths = [str(Path(__file__).resolve().parents[2]), os.environ.get("PYTHONPATH", "")]
    changes = {"PYTHONPATH": os.pathsep.join(filter(None, paths)), **more}
    return {**os.environ, **{name: str(value) for name, value in changes.items()}}


def invocation(command: str) -> str:
    """The shell command that runs `command` in the way that this process was started.

    `funmatch COMMAND` if installed, `python src/COMMAND.py` in a checkout.
    """
    installed = Path(sys.argv[0]).stem in ("funmatch", "__main__")
    return f"funmatch {command}" if installed else f"python src/{command}.py"


def free_disk_space(folder: Path) -> int:
    """Free bytes on the disk of a folder, which need not exist yet."""
    existing = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    return shutil.disk_usage(existing).free
