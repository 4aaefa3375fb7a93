"""Logging: the messages of a run, on the console and in a file in its directory.

Every module logs to `logging.getLogger(__name__)`. The console shows the bare message: errors on
stderr, all else on stdout. The file of a run has the time, the level and the module in front.
"""

import logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from funmatch.runtime import distributed
from funmatch.runtime.preemption import Interrupted

ROOT = logging.getLogger("funmatch")
FILE_ONLY = {"file_only": True}  # extra= of a record that the console does not show


class _Console(logging.Handler):
    """Prints messages to whatever sys.stdout and sys.stderr are at the moment.

    An error of the stream itself (its reader has gone) is raised, as `print` raises it.
    """

    def emit(self, record: logging.LogRecord) -> None:
        if getattr(record, "file_only", False):
            return
        stream = sys.stderr if record.levelno >= logging.ERROR else sys.stdout
        print(record.getMessage(), file=stream, flush=True)


class _RunFile(logging.Handler):
    """Appends records to the file of a run, one write each, so that processes can share it.

    A record that cannot be written, for instance on a full disk, is lost; the run continues.
    """

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.path = path
        self.setFormatter(logging.Formatter("%(asctime)s %(levelname)-7s %(name)s: %(stripped)s"))
        with suppress(OSError):
            self._file = path.open("ab", buffering=0)

    def emit(self, record: logging.LogRecord) -> None:
        record.stripped = record.getMessage().strip()
        with suppress(OSError, AttributeError, ValueError):
            self._file.write(f"{self.format(record)}\n".encode())

    def close(self) -> None:
        with suppress(OSError, AttributeError):
            self._file.close()
        super().close()


def to_console() -> None:
    """Shows what is logged on the console, once however often it is called."""
    if not any(isinstance(handler, _Console) for handler in ROOT.handlers):
        ROOT.addHandler(_Console())
        ROOT.setLevel(logging.INFO)
        ROOT.propagate = False  # Hydra and other packages configure the root logger


@contextmanager
def to_file(directory: Path, rank: int = 0) -> Iterator[None]:
    """Within the block, appends what is logged to run.log, or run.rank<n>.log of another rank.

    How the block ends is logged too, an exception with its traceback. A block inside another one
    for the same file does nothing.
    """
    path = directory / (f"run.rank{rank}.log" if rank else "run.log")
    if any(isinstance(handler, _RunFile) and handler.path == path for handler in ROOT.handlers):
        yield
        return
    handler = _RunFile(path)
    ROOT.addHandler(handler)
    try:
        yield
    except Interrupted as stop:
        ROOT.warning("interrupted by %s: %s", stop.reason, stop.message or "-", extra=FILE_ONLY)
        raise
    except BaseException:
        ROOT.error("failed", exc_info=True, extra=FILE_ONLY)
        raise
    finally:
        ROOT.removeHandler(handler)
        handler.close()


def rank_zero_info(logger: logging.Logger, message: str) -> None:
    """Logs a message of a run once, not in every rank; indented below the line of the run."""
    if distributed.rank() == 0:
        logger.info("  %s", message)
