"""What is going to be done, said before it is done."""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from mixln.device import is_main_process

LOGGER = logging.getLogger("mixln")

_WIDTH = 11
"""Of the names of facts, so that their values stand below each other."""

_announced: set[tuple[str, str]] = set()


def announce(*facts: tuple[str, object]) -> None:
    """Say what is known of the work that begins, a line for each fact, such as `("device", "cpu")`.

    A fact that has been said already is not repeated: several runs of one command share most of them. The lines are
    messages of the logger `mixln` at level INFO. The command line shows them on standard error; a Python program shows
    them as it sets up `logging`.

    Args:
        facts: name and value of each; a value of None is left out.
    """
    for name, value in facts:
        if value is not None and (name, str(value)) not in _announced:
            _announced.add((name, str(value)))
            LOGGER.info("%-*s %s", _WIDTH, f"{name}:", value)


def format_count(number: int, what: str) -> str:
    """Return a number of things for people to read, such as `134.5M parameters`."""
    for size, unit in ((1e9, "B"), (1e6, "M"), (1e3, "K")):
        if number >= size:
            return f"{number / size:.1f}{unit} {what}"
    return f"{number} {what}"


@contextmanager
def announcements_shown() -> Iterator[None]:
    """Inside the block, show what is announced on standard error, by the process that prints."""
    _announced.clear()
    handler, level = _ToStandardError(), LOGGER.level
    LOGGER.addHandler(handler)
    LOGGER.setLevel(logging.INFO)
    try:
        yield
    finally:
        LOGGER.removeHandler(handler)
        LOGGER.setLevel(level)


class _ToStandardError(logging.Handler):
    """Prints to what standard error is at the time: a progress bar puts its own in place."""

    def emit(self, record: logging.LogRecord) -> None:
        """Print a message."""
        if is_main_process():
            print(self.format(record), file=sys.stderr, flush=True)
