"""Preemption: stopping a run on a signal or a time limit so that it can be resumed."""

import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

EXIT_REQUEUE = 75  # exit code: the same command resumes the run (EX_TEMPFAIL)
EXIT_CTRL_C = 130
RESUMABLE_EXIT_CODES = {EXIT_REQUEUE, EXIT_CTRL_C}
_CODES = {signal.SIGTERM: EXIT_REQUEUE, signal.SIGUSR1: EXIT_REQUEUE, signal.SIGINT: EXIT_CTRL_C}


class Interrupted(BaseException):
    """Raised when a command stops early and can be resumed.

    It extends `BaseException`, so that `except Exception` does not swallow it.

    Args:
        reason: short name of the cause, such as SIGTERM or max_time.
        code: exit code of the command, one of `RESUMABLE_EXIT_CODES`.
        message: state of the run for the user, such as the last saved step; empty if unknown.
    """

    def __init__(self, reason: str, code: int, message: str = "") -> None:
        super().__init__(reason)
        self.reason, self.code, self.message = reason, code, message


class StopRequest:
    """A pending request to stop this process, set by a signal or by `max_time`."""

    def __init__(self) -> None:
        self._reason, self._code = "", 0
        self._started, self._deadline = time.monotonic(), float("inf")
        self._owner, self._deferrals = 0, 0

    def set_deadline(self, seconds: float) -> None:
        """Requests a stop once this process has existed for so many seconds."""
        self._deadline = self._started + seconds

    @property
    def code(self) -> int:
        """Exit code of the pending request; 0 without a request."""
        if not self._code and time.monotonic() > self._deadline:
            self._reason, self._code = "max_time", EXIT_REQUEUE
        return self._code

    @property
    def reason(self) -> str:
        return self._reason

    @contextmanager
    def install_handlers(self) -> Iterator[None]:
        """Installs handlers that record SIGTERM, SIGUSR1 and SIGINT as stop requests.

        Does nothing outside the main thread, where Python allows no signal handlers.

        Raises:
            Interrupted: from the signal handler, outside `deferred` and at a second Ctrl-C.
        """
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        self._reason, self._code, self._owner = "", 0, os.getpid()
        self._deadline = float("inf")
        before = {number: signal.getsignal(number) for number in _CODES}
        for number, handler in before.items():
            if handler != signal.SIG_IGN:  # ignored, as a shell does for background jobs
                signal.signal(number, self._handle)
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    @contextmanager
    def deferred(self) -> Iterator[None]:
        """Defers interruption: the caller polls `code` and stops at a safe point.

        Raises:
            Interrupted: at the end of the block, if a request is still pending.
        """
        self._deferrals += 1
        try:
            yield
        finally:
            self._deferrals -= 1
        if self.code and not self._deferrals:
            raise Interrupted(self.reason, self.code)

    def ignore_further(self, code: int) -> None:
        """Ignores SIGTERM and SIGUSR1 while the process exits with code `EXIT_REQUEUE`.

        A repeated signal must not kill a process that is already shutting down.
        """
        for number in _CODES if code == EXIT_REQUEUE else ():
            if number != signal.SIGINT:
                signal.signal(number, signal.SIG_IGN)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if os.getpid() != self._owner:  # a forked data loader worker: it ends with its parent
            return
        name, code = signal.Signals(number).name, _CODES[signal.Signals(number)]
        second_ctrl_c = self._code == EXIT_CTRL_C == code
        self._reason, self._code = name, code
        if second_ctrl_c or not self._deferrals:
            raise Interrupted(name, code)


STOP = StopRequest()
