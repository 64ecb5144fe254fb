"""What a removal does when the loss spikes, on losses that are made up."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest

from mixln.tasks.norm_removal.config import SpikePolicy
from mixln.tasks.norm_removal.install import FrozenNorms
from mixln.tasks.norm_removal.removal import RemovalCallback
from mixln.tasks.norm_removal.schedule import RemovalSchedule

SCHEDULE = RemovalSchedule(3, 2, 2, 2, 2, 2)
NUM_LAYERS = 1


class Recorder(FrozenNorms):
    """Norms that only remember what was asked of them."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, int | None]] = []

    def begin_step(self) -> None:
        """Nothing has been seen."""

    def freeze(self, path: Any, index: int | None) -> None:
        self.asked.append((path, index))

    def merge(self, position_class: Any) -> None:
        self.asked.append((position_class, None))


def started(policy: SpikePolicy) -> RemovalCallback:
    callback = RemovalCallback(SCHEDULE.removals(NUM_LAYERS), SCHEDULE.first_step, policy)
    object.__setattr__(callback, "norms", Recorder())
    return callback


def run(callback: RemovalCallback, loss: Callable[[int], float], steps: range) -> list[Any]:
    """Make steps, each with its loss; return the verdicts, up to the first that ends the run or takes it back."""
    for step in steps:
        callback.before_step(step)
        verdict = callback.judge_loss(step, loss(step))
        if verdict is not None:
            return [step, verdict]
    return []


def test_without_a_spike_everything_goes_on_time_and_in_order() -> None:
    callback = started(SpikePolicy("stop"))
    assert run(callback, lambda _: 2.0, range(1, 20)) == []
    assert callback.progress.made == [3, 5, 7, 9, 11, 13]
    assert callback.is_complete
    norms: Any = callback.norms
    assert norms.asked == [
        ("feed_forward", 0),
        ("query_key", 0),
        ("value", 0),
        ("final", None),
        ("end_of_text", None),
        ("first_position", None),
    ]


def spike(first: int, last: int) -> Callable[[int], float]:
    """Losses of 2 nats, and of 3 in some steps."""
    return lambda step: 3.0 if first <= step <= last else 2.0


def test_wait_holds_removals_up_until_the_spike_is_over() -> None:
    callback = started(SpikePolicy("wait", threshold=0.5))
    assert run(callback, spike(5, 9), range(1, 30)) == []
    # due in 7, held up in 7 to 10 (whose step before was one of the spike), and later ones keep their gaps
    assert callback.progress.made == [3, 5, 11, 13, 15, 17]
    assert callback.progress.waited_steps == 4


def test_a_long_spike_is_nothing_to_compare_with() -> None:
    policy = SpikePolicy("wait", threshold=0.5, window=4)
    callback = started(policy)
    # the window is full of it before it is over; what comes later is as high
    assert run(callback, lambda step: 3.0 if 5 <= step <= 15 or step >= 18 else 2.0, range(1, 40)) == []
    assert callback.progress.made == [3, 5, 17]
    assert callback.progress.waited_steps == 10 + 21


def test_behind_a_stop_a_run_waits_and_stops_at_the_next_spike_only() -> None:
    def losses(step: int) -> float:
        return 3.0 if 6 <= step <= 9 or step == 14 else 2.0

    callback = started(SpikePolicy("stop"))
    step, verdict = run(callback, losses, range(1, 40))
    assert (step, verdict.action) == (6, "stop")
    resumed = started(SpikePolicy("stop"))
    resumed.restore(callback.state())
    step, verdict = run(resumed, losses, range(7, 40))
    assert (step, verdict.action) == (14, "stop")
    # the third was due in step 7
    assert resumed.progress.made == [3, 5, 11, 13]
    again = started(SpikePolicy("stop"))
    again.restore(resumed.state())
    assert run(again, losses, range(15, 40)) == []
    assert again.is_complete


def test_a_rise_below_the_threshold_is_no_spike() -> None:
    callback = started(SpikePolicy("wait", threshold=1.5))
    run(callback, spike(5, 9), range(1, 30))
    assert callback.progress.made == [3, 5, 7, 9, 11, 13]


def test_stop_ends_the_run_and_says_after_what() -> None:
    step, verdict = run(started(SpikePolicy("stop")), spike(6, 9), range(1, 30))
    assert (step, verdict.action) == (6, "stop")
    assert (
        "the loss rose to 3 in step 6, from 2 before the query key norm of layer 1 was removed (step 5)"
        in verdict.reason
    )


def test_roll_back_goes_to_before_the_removal_and_on_at_half_the_pace() -> None:
    callback = started(SpikePolicy("roll_back"))
    saved: dict[int, dict[str, Any]] = {}
    verdict = None
    for step in range(1, 7):
        callback.before_step(step)
        verdict = callback.judge_loss(step, 3.0 if step == 6 else 2.0)
        assert callback.wants_checkpoint() == (step + 1 in (3, 5, 7) and step < 7)
        saved[step] = callback.state()
    assert verdict is not None
    assert (verdict.action, verdict.before) == ("go_back", 4)
    callback.restore(saved[verdict.before], rolled_back=True)
    callback.learn(verdict)
    assert callback.progress.made == [3]
    assert run(callback, lambda _: 2.0, range(5, 60)) == []
    # the gap of 2 is now 4: the second removal is put off by it, and the others follow at that pace
    assert callback.progress.made == [3, 9, 13, 17, 21, 25]
    assert callback.progress.num_roll_backs == 1


def test_roll_backs_end_after_so_many() -> None:
    callback = started(SpikePolicy("roll_back", max_roll_backs=2))
    actions = []
    for _ in range(3):
        _, verdict = run(callback, lambda _: 3.0 if callback.progress.made else 2.0, range(1, 60))
        actions.append(verdict.action)
        callback.restore({}, rolled_back=True)
        callback.learn(verdict)
    assert actions == ["go_back", "go_back", "stop"]


def test_the_checkpoints_before_the_last_removals_are_kept_only_to_go_back_to() -> None:
    callback = started(SpikePolicy("roll_back"))
    assert callback.needed_checkpoints() == ()
    run(callback, lambda _: 2.0, range(1, 30))
    assert callback.needed_checkpoints() == (10, 12)
    waiting = started(SpikePolicy("wait"))
    run(waiting, lambda _: 2.0, range(1, 30))
    assert waiting.needed_checkpoints() == ()


@pytest.mark.parametrize("loss", [math.nan, math.inf])
def test_a_loss_that_is_not_finite_is_a_spike(loss: float) -> None:
    waiting = started(SpikePolicy("wait"))
    assert run(waiting, lambda step: loss if step in (6, 7) else 2.0, range(1, 30)) == []
    assert waiting.progress.made == [3, 5, 9, 11, 13, 15]
    _, verdict = run(started(SpikePolicy("roll_back")), lambda step: loss if step == 6 else 2.0, range(1, 30))
    assert (verdict.action, verdict.before) == ("go_back", 4)
    # before any removal it is none of its doing
    assert run(started(SpikePolicy("roll_back")), lambda _: loss, range(1, 3)) == []


def test_a_roll_back_that_has_another_cause_changes_no_pace() -> None:
    callback = started(SpikePolicy("roll_back"))
    run(callback, lambda _: 2.0, range(1, 5))
    state = callback.state()
    run(callback, lambda _: 2.0, range(5, 8))
    callback.restore(state, rolled_back=True)
    assert run(callback, lambda _: 2.0, range(5, 30)) == []
    assert callback.progress.made == [3, 5, 7, 9, 11, 13]
    assert callback.progress.num_roll_backs == 0


@pytest.mark.parametrize("cut", range(1, 12))
def test_a_state_says_all_that_going_on_needs(cut: int) -> None:
    whole, first = started(SpikePolicy("wait")), started(SpikePolicy("wait"))
    run(whole, spike(5, 7), range(1, 30))
    run(first, spike(5, 7), range(1, cut + 1))
    second = started(SpikePolicy("wait"))
    second.restore(first.state())
    run(second, spike(5, 7), range(cut + 1, 30))
    assert second.state() == whole.state()
