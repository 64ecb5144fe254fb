"""Training in turns: what runs in the process of a contender, which waits while others train on the same GPU."""

from __future__ import annotations

import gc
from dataclasses import asdict, dataclass
from multiprocessing.connection import Connection
from typing import Any

import torch

from benchmarks.contenders import MATRIX_PEAK, find_contender
from benchmarks.documents import Counts, load_documents
from benchmarks.matrix_peak import matrix_peak
from benchmarks.meter import Meter
from benchmarks.settings import Settings
from mixln.device import default_device

READY, TURN = "ready", "turn"

_PEAK_SECONDS = 0.2
"""Of each shape of matrix multiplication, in a turn."""


@dataclass(frozen=True)
class Turns:
    """How a process trains in turns.

    Attributes:
        count: turns.
        steps: measured optimiser steps of a turn. One more is made before them: memory that was handed back while the
            process waited is taken again in it.
    """

    count: int
    steps: int

    @property
    def total(self) -> int:
        """Optimiser steps of all turns."""
        return self.count * (self.steps + 1)


class TurnMeter(Meter):
    """A meter that keeps the contender in `finish_step` until it is its turn, and tells what each turn came to.

    It says that it is ready when the warm-up steps are done, in which everything is compiled.

    Args:
        device: that it trains on.
        connection: to the benchmark.
        warm_up_steps: before the first turn.
        turns: see there.
    """

    def __init__(self, device: torch.device, connection: Connection, warm_up_steps: int, turns: Turns) -> None:
        super().__init__(device)
        self._connection = connection
        self._warm_up_steps = warm_up_steps
        self._turns = turns

    def finish_step(self, counts: Counts) -> None:
        """See `Meter`."""
        super().finish_step(counts)
        steps = len(self.counts) - self._warm_up_steps
        number, within = divmod(steps, self._turns.steps + 1)
        if steps < 0 or within:
            return
        values = self._of_the_turn() if number else {"first_step_seconds": self.step_seconds[0], **self._memory()}
        if not number:
            self.reset_peak()  # compiling takes memory too
        if number < self._turns.count:
            self._hand_back()
        self._connection.send({"kind": TURN if number else READY, "status": "ok", "values": values})
        if number < self._turns.count:
            self._connection.recv()

    def _of_the_turn(self) -> dict[str, Any]:
        steps = slice(-self._turns.steps, None)
        return {
            "step_seconds": self.step_seconds[steps],
            "processor_seconds": self.processor_seconds[steps],
            "predicted": [counts.predicted for counts in self.counts[steps]],
            "slots": [counts.slots for counts in self.counts[steps]],
            **self._memory(),
        }

    def _memory(self) -> dict[str, Any]:
        return {"peak_bytes": self.peak_bytes(), "reserved_bytes": self.reserved_bytes()}

    def _hand_back(self) -> None:
        """Leave the GPU's memory to others, but for weights and optimiser."""
        gc.collect()
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
            torch.cuda.empty_cache()


def work_in_turns(connection: Connection | None, contender: str, settings: Settings, turns: Turns) -> dict[str, Any]:
    """Train a contender and return its last loss and its parameters; or measure the peak once in each turn."""
    torch.set_num_threads(settings.threads)
    if contender == MATRIX_PEAK and connection is not None:
        return _multiply_in_turns(connection, settings, turns)
    run = find_contender(contender)
    device = default_device()
    # of several processes the first waits for all
    meter = Meter(device) if connection is None else TurnMeter(device, connection, settings.warm_up_steps, turns)
    return asdict(run(settings, load_documents(settings), meter))


def _multiply_in_turns(connection: Connection, settings: Settings, turns: Turns) -> dict[str, Any]:
    for number in range(turns.count + 1):
        values = matrix_peak(settings, default_device(), _PEAK_SECONDS) if number else {}
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        connection.send({"kind": TURN if number else READY, "status": "ok", "values": values})
        if number < turns.count:
            connection.recv()
    return {}
