"""Several runs in one process that take turns, step by step."""

from collections.abc import Callable, Sequence
from typing import Any

from greenlet import GreenletExit, getcurrent, greenlet
from lightning.fabric.utilities.seed import _collect_rng_states, _set_rng_states


class Seat:
    """A run's place among those that take turns.

    It runs on a stack of its own, so that what it calls, a trainer say, need not know of the
    others. The global random numbers are its own, too.
    """

    def __init__(self, task: Callable[["Seat"], Any]) -> None:
        self._task, self._stack = task, greenlet(self._run)
        self.step = -1  # it waits for; before that it gets ready
        self.outcome: Any = None

    def wait(self, step: int) -> None:
        """Called by the run: goes on when no other waits for an earlier step."""
        assert getcurrent() is self._stack
        self.step = step
        random = _collect_rng_states()
        self._stack.parent.switch()
        _set_rng_states(random)

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
        except Exception as error:  # the others go on
            self.outcome = error


def take_turns(tasks: Sequence[Callable[[Seat], Any]]) -> list[Any]:
    """Runs tasks side by side: whichever is furthest behind goes on, in their order.

    Returns:
        What each has returned, or the exception that ended it.
    """
    seats = [Seat(task) for task in tasks]
    try:
        while left := [seat for seat in seats if not seat.done]:
            min(left, key=lambda seat: seat.step).go_on()
    finally:  # an interrupt ends them all
        for seat in seats:
            seat.leave()
    return [seat.outcome for seat in seats]
