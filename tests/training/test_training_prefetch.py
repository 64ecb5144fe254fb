from __future__ import annotations

import threading
import time
from typing import NamedTuple

import pytest
import torch

from mixln.training.prefetch import Prefetcher


class Batch(NamedTuple):
    """Any tree of tensors."""

    input_ids: torch.Tensor
    targets: torch.Tensor
    position_ids: torch.Tensor


def make_batch(step: int) -> Batch:
    tensor = torch.full((1, 2), step)
    return Batch(tensor, tensor + 1, tensor + 2)


def prefetch_threads() -> int:
    return sum(thread.name.startswith("mixln-prefetch") for thread in threading.enumerate())


def wait_until(condition: object) -> None:
    assert callable(condition)
    deadline = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.001)


@pytest.mark.parametrize("depth", [1, 2, 5])
def test_batches_come_in_order_and_no_more_than_depth_ahead(depth: int) -> None:
    prepared: list[int] = []

    def prepare(step: int) -> Batch:
        prepared.append(step)
        return make_batch(step)

    with Prefetcher(prepare, depth=depth) as prefetcher:
        for step in range(7, 20):
            batch = prefetcher.get(step)
            assert batch.input_ids.tolist() == [[step, step]]
            assert batch.position_ids.tolist() == [[step + 2, step + 2]]
            wait_until(lambda step=step: len(prepared) == step - 7 + 1 + depth)
        time.sleep(0.05)
        assert prepared == list(range(7, 20 + depth))


def test_it_works_while_the_consumer_does() -> None:
    inside, release = threading.Event(), threading.Event()

    def prepare(step: int) -> Batch:
        if step == 1:
            inside.set()
            assert release.wait(10)
        return make_batch(step)

    with Prefetcher(prepare) as prefetcher:
        prefetcher.get(0)
        assert inside.wait(10), "step 1 is prepared without being asked for"
        threading.Timer(0.2, release.set).start()
        before = prefetcher.waited_seconds
        prefetcher.get(1)
        assert prefetcher.waited_seconds - before > 0.1


def test_another_step_than_the_next_starts_there() -> None:
    prepared: list[int] = []

    def prepare(step: int) -> Batch:
        prepared.append(step)
        return make_batch(step)

    with Prefetcher(prepare) as prefetcher:
        for step in (0, 1, 2, 0, 1, 10, 10, 11):
            assert prefetcher.get(step).input_ids[0, 0] == step
        assert prefetch_threads() == 1
    assert prepared.count(0) == 2


def test_what_preparing_raises_reaches_the_consumer_at_its_step() -> None:
    failures = 1

    def prepare(step: int) -> Batch:
        nonlocal failures
        if step == 2 and failures:
            failures -= 1
            raise OSError("disk gone")
        return make_batch(step)

    with Prefetcher(prepare) as prefetcher:
        assert prefetcher.get(0).input_ids[0, 0] == 0
        assert prefetcher.get(1).input_ids[0, 0] == 1
        with pytest.raises(OSError, match="disk gone"):
            prefetcher.get(2)
        assert prefetch_threads() == 0
        assert prefetcher.get(2).input_ids[0, 0] == 2, "asking again tries again"
        assert prefetcher.get(3).input_ids[0, 0] == 3


def test_the_thread_ends_with_the_block() -> None:
    class StoppedError(Exception):
        pass

    def leave(error: type[Exception] | None) -> Prefetcher:
        with Prefetcher(make_batch) as prefetcher:
            prefetcher.get(0)
            assert prefetch_threads() == 1
            if error is not None:
                raise error
        return prefetcher

    with pytest.raises(StoppedError):
        leave(StoppedError)
    assert prefetch_threads() == 0
    prefetcher = leave(None)
    assert prefetch_threads() == 0
    prefetcher.close()
    with pytest.raises(RuntimeError, match="closed"):
        prefetcher.get(1)
    with Prefetcher(make_batch):
        pass  # never used
    with pytest.raises(ValueError, match="depth"):
        Prefetcher(make_batch, depth=0)


def test_batches_are_moved_to_the_device() -> None:
    with Prefetcher(make_batch, "meta") as prefetcher:
        assert prefetcher.get(0).targets.device.type == "meta"


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_batches_arrive_whole_on_a_cuda_device() -> None:
    def prepare(step: int) -> Batch:
        tensor = torch.full((512, 4096), step)
        return Batch(tensor, tensor + 1, tensor + 2)

    with Prefetcher(prepare, "cuda") as prefetcher:
        for step in range(20):
            batch = prefetcher.get(step)
            assert batch.input_ids.device.type == "cuda"
            assert bool((batch.targets == step + 1).all())
