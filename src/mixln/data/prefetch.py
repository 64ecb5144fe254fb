"""Preparing the next batches while the current one is trained on."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable
from types import TracebackType
from typing import Self

import torch

from mixln.data.packing import Batch


class Prefetcher:
    """Calls a function step -> Batch ahead of its consumer, in one background thread; a context manager.

    With a CUDA device, batches are pinned and copied there without blocking, on a stream of their own that the
    consumer's stream waits for; so the copy is hidden too.

        with Prefetcher(lambda step: training_batch(dataset, step, 512, seed), device) as prefetcher:
            for step in range(start, end):
                batch = prefetcher.get(step)

    Args:
        prepare: Called with steps in order, in the background thread.
        device: Where batches shall lie.
        depth: Batches prepared ahead, at least 1.

    Attributes:
        waited_seconds: Time that `get` has spent waiting for a batch, in all: near 0 if loading is not the bottleneck.
    """

    def __init__(self, prepare: Callable[[int], Batch], device: torch.device | str = "cpu", *, depth: int = 2) -> None:
        if depth < 1:
            raise ValueError(f"depth must be at least 1, got {depth}")
        self.waited_seconds = 0.0
        self._prepare = prepare
        self._device = torch.device(device)
        self._copies: torch.cuda.Stream | None = (
            torch.cuda.Stream(self._device) if self._device.type == "cuda" else None
        )
        self._depth = depth
        self._next_step: int | None = None
        self._worker: _Worker | None = None
        self._closed = False

    def get(self, step: int) -> Batch:
        """The batch of a step.

        Any step may be asked for; one other than the next (the first call, or going back to a checkpoint) throws away
        what was prepared and starts there.

        Raises:
            RuntimeError: The prefetcher is closed.
            Exception: Whatever `prepare` raised for this step; asking again tries again.
        """
        if self._closed:
            raise RuntimeError("the prefetcher is closed; open another one")
        started = time.perf_counter()
        if self._worker is None or step != self._next_step:
            self._stop()
            self._worker = _Worker(self._load, step, self._depth)
        try:
            batch, copied = self._worker.get()
        except BaseException:
            self._stop()
            raise
        if copied is not None:
            current = torch.cuda.current_stream(self._device)
            current.wait_event(copied)
            for tensor in (batch.input_ids, batch.targets, batch.position_ids):
                # Allocated on the stream of copies: its memory must not be given away while the consumer uses it.
                tensor.record_stream(current)
        self._next_step = step + 1
        self.waited_seconds += time.perf_counter() - started
        return batch

    def close(self) -> None:
        """Stop the thread and wait until it has ended; may be called again."""
        self._closed = True
        self._stop()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def _stop(self) -> None:
        worker, self._worker = self._worker, None
        if worker is not None:
            worker.stop()

    def _load(self, step: int) -> _Loaded:
        batch = self._prepare(step)
        if self._copies is None:
            return (batch if self._device.type == "cpu" else batch.to(self._device)), None
        with torch.cuda.stream(self._copies):
            # The caching host allocator keeps pinned memory until copies that use it have ended.
            pinned = Batch(batch.input_ids.pin_memory(), batch.targets.pin_memory(), batch.position_ids.pin_memory())
            moved = pinned.to(self._device, non_blocking=True)
            copied = torch.cuda.Event()
            copied.record(self._copies)
        return moved, copied


_Loaded = tuple[Batch, torch.cuda.Event | None]


class _Worker:
    """A thread that loads steps from `first` on until it is stopped or loading fails."""

    def __init__(self, load: Callable[[int], _Loaded], first: int, depth: int) -> None:
        self._load = load
        self._results: queue.SimpleQueue[_Loaded | BaseException] = queue.SimpleQueue()
        self._slots = threading.Semaphore(depth)
        self._stopped = False
        self._thread = threading.Thread(target=self._run, args=(first,), name="mixln-prefetch", daemon=True)
        self._thread.start()

    def get(self) -> _Loaded:
        result = self._results.get()
        self._slots.release()
        if isinstance(result, BaseException):
            raise result
        return result

    def stop(self) -> None:
        self._stopped = True
        self._slots.release()
        self._thread.join()

    def _run(self, step: int) -> None:
        while True:
            self._slots.acquire()
            if self._stopped:
                return
            try:
                self._results.put(self._load(step))
            except BaseException as error:
                self._results.put(error)
                return
            step += 1
