"""Preparing the next batches while the current one is trained on."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves, tree_map_only

_Loaded = tuple[Any, torch.cuda.Event | None]


class Prefetcher(AbstractContextManager["Prefetcher"]):
    """Calls a function step -> batch ahead of its consumer, in one background thread; a context manager.

    A batch is any tree of tensors and other things (`torch.utils._pytree`). With a CUDA device, batches are pinned and
    copied there without blocking, on a stream of their own that the consumer's stream waits for; so the copy is hidden
    too.

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

    def __init__(self, prepare: Callable[[int], Any], device: torch.device | str = "cpu", *, depth: int = 2) -> None:
        if depth < 1:
            raise ValueError(f"depth must be at least 1, got {depth}")
        self.waited_seconds = 0.0
        self._prepare = prepare
        self._device = torch.device(device)
        self._copies = torch.cuda.Stream(self._device) if self._device.type == "cuda" else None
        self._depth = depth
        self._closed = False
        self._thread: ThreadPoolExecutor | None = None
        self._ahead: deque[Future[_Loaded]] = deque()  # of `_next_step` and those that follow it
        self._next_step = 0

    def get(self, step: int) -> Any:
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
        if self._thread is None or step != self._next_step:
            self._stop()
            self._thread = ThreadPoolExecutor(1, "mixln-prefetch")
            self._ahead.extend(self._thread.submit(self._load, step + number) for number in range(self._depth))
        try:
            batch, copied = self._ahead.popleft().result()
        except BaseException:
            self._stop()
            raise
        self._ahead.append(self._thread.submit(self._load, step + self._depth))
        if copied is not None:
            current = torch.cuda.current_stream(self._device)
            current.wait_event(copied)
            for tensor in (leaf for leaf in tree_leaves(batch) if isinstance(leaf, Tensor)):
                # Allocated on the stream of copies: its memory must not be given away while the consumer uses it.
                tensor.record_stream(current)
        self._next_step = step + 1
        self.waited_seconds += time.perf_counter() - started
        return batch

    def close(self) -> None:
        """Stop the thread and wait until it has ended; may be called again."""
        self._closed = True
        self._stop()

    def __exit__(self, *_error: object) -> None:
        self.close()

    def _stop(self) -> None:
        if self._thread is not None:
            self._thread.shutdown(cancel_futures=True)
        self._thread = None
        self._ahead.clear()

    def _load(self, step: int) -> _Loaded:
        batch = self._prepare(step)
        if self._copies is None:
            return tree_map_only(Tensor, lambda tensor: tensor.to(self._device), batch), None
        with torch.cuda.stream(self._copies):
            # The caching host allocator keeps pinned memory until copies that use it have ended.
            pinned = tree_map_only(Tensor, Tensor.pin_memory, batch)
            moved = tree_map_only(Tensor, lambda tensor: tensor.to(self._device, non_blocking=True), pinned)
            copied = torch.cuda.Event()
            copied.record(self._copies)
        return moved, copied
