"""Ctrl-C and SIGTERM that wait for the end of a training step."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType

from mixln.interruption import Interrupted


class TrainingInterrupted(Interrupted):
    """A run has been asked to stop, by SIGINT or SIGTERM, and has.

    Args:
        signal_number: of the signal.
        step: of the checkpoint that is written; None: the run was stopped in the middle of a step.
    """

    def __init__(self, signal_number: int, step: int | None = None) -> None:
        where = "the last checkpoint is" if step is None else f"the checkpoint of step {step} is"
        name = signal.Signals(signal_number).name
        super().__init__(f"interrupted by {name}: {where} kept. Run the same command again to go on", signal_number)


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
