"""The error that a user can fix, and the errors of the operating system that are of that kind."""

from __future__ import annotations

import errno

FIXABLE_ERRORS = {
    errno.ENOSPC: "make room on that disk, and run the same command again",
    errno.EDQUOT: "make room in that quota, and run the same command again",
    errno.EFBIG: "allow larger files there (ulimit -f), or choose another disk",
    errno.EACCES: "choose a place that you may write to",
    errno.EPERM: "choose a place that you may write to",
    errno.EROFS: "choose a place that can be written",
    errno.ENOTDIR: "choose a folder",
    errno.EEXIST: "choose a folder",
    errno.ENAMETOOLONG: "choose a shorter path",
}
"""Errors of the operating system that the user can fix, and how."""


def unsupported_transformers(what: str) -> ImportError:
    """Return the error of a release of transformers that lacks what this library uses of it."""
    from transformers import __version__

    return ImportError(
        f"mixln does not work with transformers {__version__}: {what}. Install a version that the README "
        "lists as supported, or a newer mixln"
    )


class InputError(ValueError):
    """Something the user gave cannot be used.

    The message says what is wrong, where, and how to fix it. The command line prints it alone, without a traceback,
    and exits with status 2.
    """
