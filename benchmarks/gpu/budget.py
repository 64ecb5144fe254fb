"""Time: how much of it there is, and how it is shared out among the parts of the benchmark."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

RESERVE = 5.0
"""Seconds left for ending processes and writing the results."""


@dataclass(frozen=True)
class Part:
    """A part of the benchmark.

    Attributes:
        name: what it is called in the results.
        weight: its share of the time, beside those of the parts after it.
        run: does it, until a time of the monotonic clock; what is done by then is kept.
        least: with less than so many seconds it is left out, since nothing would come of it.
    """

    name: str
    weight: float
    run: Callable[[float], None]
    least: float = 0.0


def shared_out(parts: Sequence[Part], end: float, leave_out: Callable[[str], None]) -> Iterator[tuple[Part, float]]:
    """Yield each part with the time until which it may run.

        seconds of a part = seconds left * its weight / weights of it and of the parts after it

    So what a part does not use, the parts after it have.

    Args:
        parts: in order.
        end: of all parts together, of the monotonic clock.
        leave_out: told of each part that does not fit any more.
    """
    for number, part in enumerate(parts):
        now = time.monotonic()
        seconds = (end - now) * part.weight / sum(later.weight for later in parts[number:])
        if seconds <= part.least:
            left = max(0.0, seconds)
            leave_out(f"{part.name}: {left:.0f} s were left for it, and it takes {part.least:.0f} at least")
            continue
        yield part, now + seconds
