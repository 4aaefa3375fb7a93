"""Several runs in one process that take turns, step by step."""

import traceback
from collections.abc import Callable, Sequence
from typing import Any

from greenlet import GreenletExit, getcurrent, greenlet

from funmatch.interruption import Interrupted


class Seat:
    """A run's place among those that take turns.

    It runs on a stack of its own, so that what it calls, a trainer say, need not know of the
    others.
    """

    def __init__(self, task: Callable[["Seat"], Any]) -> None:
        self._task, self._stack = task, greenlet(self._run)
        self.step = -1  # it waits for; before that it gets ready
        self.outcome: Any = None

    def wait(self, step: int) -> None:
        """Called by the run: goes on when no other waits for an earlier step."""
        assert getcurrent() is self._stack
        self.step = step
        self._stack.parent.switch()

    @property
    def done(self) -> bool:
        """Whether the run has ended."""
        return self._stack.dead

    def go_on(self) -> None:
        """Lets the run go on until it waits again."""
        self._stack.switch()

    def leave(self) -> None:
        """Ends the run where it waits."""
        if self._stack:
            self._stack.throw(GreenletExit)

    def _run(self) -> None:
        try:
            self.outcome = self._task(self)
        except (Exception, Interrupted) as error:  # the others go on, or save what they have
            self.outcome = error
            _forget(error)


def take_turns(tasks: Sequence[Callable[[Seat], Any]]) -> list[Any]:
    """Runs tasks side by side: whichever is furthest behind goes on, in their order.

    Returns:
        What each has returned, or the exception that ended it.

    Raises:
        Interrupted: all that were at work were asked to stop, and have.
    """
    seats = [Seat(task) for task in tasks]
    try:
        while left := [seat for seat in seats if not seat.done]:
            min(left, key=lambda seat: seat.step).go_on()
    finally:  # an impatient interrupt ends them all
        for seat in seats:
            seat.leave()
    for seat in seats:
        if isinstance(seat.outcome, Interrupted):
            raise seat.outcome
    return [seat.outcome for seat in seats]


def _forget(error: BaseException | None) -> None:
    """Lets go of what the functions held that an error went through: a network, its optimiser."""
    while error is not None:
        traceback.clear_frames(error.__traceback__)
        error = error.__cause__ or error.__context__
