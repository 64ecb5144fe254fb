"""What is measured while a contender trains: the time of each step and the peak of memory."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable
from pathlib import Path
from typing import Protocol, TypeVar

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


class Clock(Protocol):
    """Marks moments in the work of a device."""

    def mark(self) -> None:
        """Mark the moment when the device has done all that it has been given so far."""
        ...

    def seconds(self) -> list[float]:
        """Return the time from each mark to the next; waits until the device has come to the last."""
        ...


class ProcessorClock:
    """Of the processor, which has done its work when it comes to the mark."""

    def __init__(self) -> None:
        self._marks: list[float] = []

    def mark(self) -> None:
        """See `Clock`."""
        self._marks.append(time.perf_counter())

    def seconds(self) -> list[float]:
        """See `Clock`."""
        return [after - before for before, after in zip(self._marks, self._marks[1:], strict=False)]


class GpuClock:
    """Of a GPU: events in its queue, so that nobody waits for a step's end before the next one is given to it."""

    def __init__(self) -> None:
        self._marks: list[torch.cuda.Event] = []

    def mark(self) -> None:
        """See `Clock`."""
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        self._marks.append(event)

    def seconds(self) -> list[float]:
        """See `Clock`."""
        if self._marks:
            self._marks[-1].synchronize()
        pairs = zip(self._marks, self._marks[1:], strict=False)
        return [before.elapsed_time(after) / 1e3 for before, after in pairs]


def clock_of(device: torch.device) -> Clock:
    """Return a clock for the work of a device."""
    return GpuClock() if device.type == "cuda" else ProcessorClock()


class Meter:
    """Told by a contender when it begins to build and whenever an optimiser step is done.

    Attributes:
        device: what the contender is to train on.
        processor_seconds: for each step, the processor time of all threads: much less than time * threads means that
            other processes were in the way, or that the step waits.
        counts: for each step, its tokens.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.processor_seconds: list[float] = []
        self.counts: list[Counts] = []
        self.peak_was_reset = False
        self._clock = clock_of(device)
        self._resident = 0
        self._last_processor = 0.0

    @property
    def step_seconds(self) -> list[float]:
        """For each step, the time since the end of the one before (of the first: since `begin`)."""
        return self._clock.seconds()

    def begin(self) -> None:
        """Everything is imported and the documents are at hand; nothing is built yet."""
        gc.collect()
        self._resident = _memory("VmRSS")
        if self.device.type == "cuda":
            torch.cuda.init()
        self.reset_peak()
        self._clock.mark()
        self._last_processor = time.process_time()

    def finish_step(self, counts: Counts) -> None:
        """A step is done, or given to the GPU whole: data loaded, gradients computed, weights updated."""
        self._clock.mark()
        processor = time.process_time()
        self.processor_seconds.append(processor - self._last_processor)
        self.counts.append(counts)
        self._last_processor = processor

    def reset_peak(self) -> None:
        """Forget the highest memory so far, for example that of compiling."""
        self.peak_was_reset = _reset_peak()
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self.device)

    def peak_bytes(self) -> int:
        """Highest memory since `begin` or `reset_peak`.

        On a GPU that of tensors; on a processor that of the process, net of what it held at `begin`.
        """
        if self.device.type == "cuda":
            return torch.cuda.max_memory_allocated(self.device)
        return _memory("VmHWM") - self._resident

    def reserved_bytes(self) -> int | None:
        """The most that PyTorch has taken of the GPU since then, for tensors and between them; None on the CPU."""
        return torch.cuda.max_memory_reserved(self.device) if self.device.type == "cuda" else None


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
