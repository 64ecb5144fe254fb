"""Ctrl-C and SIGTERM that wait for the end of a training step."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType


class TrainingInterrupted(KeyboardInterrupt):
    """A run has been asked to stop, and has; its checkpoint is written.

    Attributes:
        signal_number: SIGINT or SIGTERM. Commands exit with 128 + this: 130 or 143.
    """

    def __init__(self, signal_number: int) -> None:
        super().__init__(f"interrupted by {signal.Signals(signal_number).name}")
        self.signal_number = signal_number


@dataclass
class Interruption:
    """Whether somebody has asked the run to stop: the number of the signal, or 0."""

    signal_number: int = 0


@contextmanager
def deferred_interrupt() -> Iterator[Interruption]:
    """Within the block, the first SIGINT or SIGTERM is only noted, so that no step is cut in half.

    A second one interrupts at once. Outside the main thread, where Python allows no handlers, nothing changes.
    """
    interruption = Interruption()
    if threading.current_thread() is not threading.main_thread():
        yield interruption
        return

    def handle(signal_number: int, _frame: FrameType | None) -> None:
        if interruption.signal_number:
            raise TrainingInterrupted(signal_number)
        interruption.signal_number = signal_number

    previous = {number: signal.signal(number, handle) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield interruption
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
