"""Errors that are the user's to mend."""


class UserError(ValueError):
    """A mistake of the user: one line with key, value and remedy."""
