"""What is measured while a contender trains: the time of each step and the peak of memory."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import torch
from torch import nn

from benchmarks.documents import Counts

_STATUS = Path("/proc/self/status")
_CLEAR_REFERENCES = Path("/proc/self/clear_refs")
_RESET_PEAK = "5"

Inputs = TypeVar("Inputs")


def seconds_of(action: Callable[[nn.Module, Inputs], None], model: nn.Module, inputs: Inputs) -> float:
    """Time of one call."""
    before = time.perf_counter()
    action(model, inputs)
    return time.perf_counter() - before


class Meter:
    """Told by a contender when it begins to build and whenever an optimiser step is done.

    Attributes:
        device: what the contender is to train on.
        step_seconds: for each step, the time since the end of the one before (of the first: since `begin`).
        processor_seconds: for each step, the processor time of all threads: much less than time * threads means that
            other processes were in the way, or that the step waits.
        counts: for each step, its tokens.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.step_seconds: list[float] = []
        self.processor_seconds: list[float] = []
        self.counts: list[Counts] = []
        self.peak_was_reset = False
        self._resident = 0
        self._last = 0.0
        self._last_processor = 0.0

    def begin(self) -> None:
        """Everything is imported and the documents are at hand; nothing is built yet."""
        gc.collect()
        self._resident = _memory("VmRSS")
        self.peak_was_reset = _reset_peak()
        if self.device.type == "cuda":
            torch.cuda.init()
            torch.cuda.reset_peak_memory_stats(self.device)
        self._last, self._last_processor = time.perf_counter(), time.process_time()

    def finish_step(self, counts: Counts) -> None:
        """A step is done: data loaded, gradients computed, weights updated."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        now, processor = time.perf_counter(), time.process_time()
        self.step_seconds.append(now - self._last)
        self.processor_seconds.append(processor - self._last_processor)
        self.counts.append(counts)
        self._last, self._last_processor = now, processor

    def peak_bytes(self) -> int:
        """Highest memory since `begin`: of the accelerator, or of this process net of what it held at `begin`."""
        if self.device.type == "cuda":
            return torch.cuda.max_memory_allocated(self.device)
        return _memory("VmHWM") - self._resident


def _memory(field: str) -> int:
    """Bytes of a field of /proc/self/status."""
    try:
        lines = _STATUS.read_text(encoding="utf-8").splitlines()
    except OSError as error:
        raise RuntimeError(f"memory is measured through {_STATUS}, which only Linux has ({error})") from error
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{field}:"))


def _reset_peak() -> bool:
    """Set VmHWM back to the present resident set, where the kernel allows it."""
    try:
        _CLEAR_REFERENCES.write_text(_RESET_PEAK, encoding="utf-8")
    except OSError:
        return False
    return True
