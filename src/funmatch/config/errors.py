"""Errors that the user can fix."""

from collections.abc import Iterable


class UserError(ValueError):
    """A user error; its message is one line with key, value and remedy."""


class RunIsBusyError(UserError):
    """Another process works on the run."""


def join_or(choices: Iterable[str]) -> str:
    """A list of choices as text: `a, b or c`."""
    *most, last = choices
    return f"{', '.join(most)} or {last}" if most else last
