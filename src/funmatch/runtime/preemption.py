"""Being asked to stop, by a signal or by the clock, where the work can go on later."""

import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

REQUEUE = 75  # the exit code: run the same command again (EX_TEMPFAIL)
CTRL_C = 130
RESUMABLE_EXIT_CODES = {REQUEUE, CTRL_C}  # codes of those who can go on later
_CODES = {signal.SIGTERM: REQUEUE, signal.SIGUSR1: REQUEUE, signal.SIGINT: CTRL_C}


class Interrupted(BaseException):
    """Ends a command whose work is kept. No error: nothing that catches errors may stop it.

    Args:
        reason: in a word or two, as in SIGTERM.
        code: with which the command is to exit.
        told: what has become of the work, if anybody knows.
    """

    def __init__(self, reason: str, code: int, told: str = "") -> None:
        super().__init__(reason)
        self.reason, self.code, self.told = reason, code, told


class StopRequest:
    """That somebody has for this process to stop."""

    def __init__(self) -> None:
        self._reason, self._code = "", 0
        self._started, self._deadline = time.monotonic(), float("inf")
        self._owner, self._minded = 0, 0

    def within(self, seconds: float) -> None:
        """Stop when the process is so old."""
        self._deadline = self._started + seconds

    @property
    def code(self) -> int:
        """The exit code that is wished for; 0 if nobody wishes."""
        if not self._code and time.monotonic() > self._deadline:
            self._reason, self._code = "max_time", REQUEUE
        return self._code

    @property
    def reason(self) -> str:
        return self._reason

    @contextmanager
    def heard(self) -> Iterator[None]:
        """Where signals are wishes.

        Raises:
            Interrupted: from within a signal handler, where nobody minds, and at a second Ctrl-C.
        """
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        self._reason, self._code, self._owner = "", 0, os.getpid()
        self._deadline = float("inf")
        before = {number: signal.getsignal(number) for number in _CODES}
        for number, handler in before.items():
            if handler != signal.SIG_IGN:  # as in a shell's background
                signal.signal(number, self._hear)
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    @contextmanager
    def minded(self) -> Iterator[None]:
        """Where somebody looks at the wish often, and stops in good order.

        Raises:
            Interrupted: at the end, if there is a wish that nobody has seen.
        """
        self._minded += 1
        try:
            yield
        finally:
            self._minded -= 1
        if self.code and not self._minded:
            raise Interrupted(self.reason, self.code)

    def fulfilled(self, code: int) -> None:
        """The process leaves, with its exit code: who asks again must not kill it on the way."""
        for number in _CODES if code == REQUEUE else ():
            if number != signal.SIGINT:
                signal.signal(number, signal.SIG_IGN)

    def _hear(self, number: int, frame: FrameType | None) -> None:
        if os.getpid() != self._owner:  # a worker of a loader: it ends with its parent
            return
        name, code = signal.Signals(number).name, _CODES[signal.Signals(number)]
        impatient = self._code == CTRL_C == code
        self._reason, self._code = name, code
        if impatient or not self._minded:
            raise Interrupted(name, code)


STOP = StopRequest()
