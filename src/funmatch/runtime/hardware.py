"""What this machine has to give."""

import ctypes
import os
import platform
import shutil
import sys
from pathlib import Path


def available_cores() -> int:
    """Those that this process was given."""
    given = getattr(os, "sched_getaffinity", None)  # not on macOS
    return len(given(0)) if given else os.cpu_count() or 1


def end_with_parent(signal: int) -> None:
    """Has this process be sent a signal when the one that started it ends, however it ends.

    Only Linux can.
    """
    if sys.platform == "linux":
        set_signal_of_parent_death = 1
        ctypes.CDLL(None).prctl(set_signal_of_parent_death, int(signal))


def processor_name() -> str:
    """What computes where no GPU does, as its maker calls it."""
    facts = Path("/proc/cpuinfo")
    text = facts.read_text() if facts.exists() else ""
    names = [line.partition(":")[2].strip() for line in text.splitlines() if "model name" in line]
    return names[0] if names else platform.processor() or platform.machine()


def subprocess_environment(**more: object) -> dict[str, str]:
    """Of a process that is to import this package, wherever it lies."""
    paths = [str(Path(__file__).resolve().parents[1]), os.environ.get("PYTHONPATH", "")]
    told = {"PYTHONPATH": os.pathsep.join(filter(None, paths)), **more}
    return {**os.environ, **{name: str(value) for name, value in told.items()}}


def invocation(command: str) -> str:
    """How a command is called as this one was: by its script in a checkout, or as installed."""
    installed = Path(sys.argv[0]).stem in ("funmatch", "__main__")
    return f"funmatch {command}" if installed else f"python src/{command}.py"


def free_disk_space(folder: Path) -> int:
    """Bytes that are free where a folder lies, or will lie."""
    there = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    return shutil.disk_usage(there).free
