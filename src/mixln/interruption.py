"""Ctrl-C, and what of the work is kept."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager


class Interrupted(KeyboardInterrupt):
    """Work was interrupted; the message says what of it is kept.

    Attributes:
        signal_number: of the signal that asked for it. Commands exit with 128 + this: 130 after Ctrl-C.
    """

    def __init__(self, message: str, signal_number: int = 2) -> None:
        super().__init__(message)
        self.signal_number = signal_number


@contextmanager
def keeping(what: Callable[[], str]) -> Iterator[None]:
    """Say after Ctrl-C inside the block what is kept; what is said inside it already counts.

    Args:
        what: returns it, as it is then: "nothing was written".

    Raises:
        Interrupted: instead of a KeyboardInterrupt.
    """
    try:
        yield
    except Interrupted:
        raise
    except KeyboardInterrupt:
        # where in the work it was is of no use to whoever interrupted it
        raise Interrupted(f"interrupted: {what()}") from None
