"""The error that a user can mend."""

from __future__ import annotations


class InputError(ValueError):
    """Something the user gave cannot be used.

    The message says what is wrong, where, and how to mend it. The command line prints it alone, without a traceback,
    and exits with status 2.
    """
