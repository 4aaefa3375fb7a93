"""Errors that are the user's to mend."""

from collections.abc import Iterable


class UserError(ValueError):
    """A mistake of the user: one line with key, value and remedy."""


def either(choices: Iterable[str]) -> str:
    """Choices in words: a, b or c."""
    *most, last = choices
    return f"{', '.join(most)} or {last}" if most else last
