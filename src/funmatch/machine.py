"""What this machine has to give."""

import os
import shutil
from pathlib import Path


def cores() -> int:
    """Those that this process was given."""
    given = getattr(os, "sched_getaffinity", None)  # not on macOS
    return len(given(0)) if given else os.cpu_count() or 1


def disk(folder: Path) -> int:
    """Bytes that are free where a folder lies, or will lie."""
    there = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    return shutil.disk_usage(there).free
