"""What goes when: the published schedules, those derived from them, and what is impossible."""

from __future__ import annotations

from typing import Any

import pytest

from mixln.errors import InputError
from mixln.tasks.norm_removal.config import NormRemovalConfig
from mixln.tasks.norm_removal.schedule import PUBLISHED, RemovalSchedule, derived_schedule


def planned(schedule: RemovalSchedule, num_layers: int) -> list[tuple[int, str, int | None]]:
    """(step, target, layer) of every removal, as the schedule's own pace has it."""
    step, found = schedule.first_step, []
    for removal in schedule.removals(num_layers):
        found.append((step, removal.target, removal.layer))
        step += removal.gap
    return found


def test_gpt2_small_goes_as_published() -> None:
    found = planned(PUBLISHED["gpt2-small"].schedule, 12)
    # start 20, gaps 2 / 2 / 3, then +2, +10, for 12 layers
    expected = [(20 + 2 * layer, "feed_forward", layer) for layer in range(12)]
    expected += [(44 + 2 * layer, "query_key", layer) for layer in range(12)]
    expected += [(68 + 3 * layer, "value", layer) for layer in range(12)]
    expected += [(104, "final", None), (106, "end_of_text", None), (116, "first_position", None)]
    assert found == expected


def test_the_first_layers_may_go_last() -> None:
    schedule = RemovalSchedule(5, 1, 1, 1, 2, 3, first_layer=3)
    late = [(kind, layer) for kind in ("feed_forward", "query_key", "value") for layer in (2, 3)]
    early = [(kind, layer) for kind in ("feed_forward", "query_key", "value") for layer in (0, 1)]
    found = [(target, layer) for _, target, layer in planned(schedule, 4)]
    assert found == [*late, ("final", None), *early, ("end_of_text", None), ("first_position", None)]
    assert NormRemovalConfig(steps=100, first_layer=4).removal_schedule(4).first_layer == 4


@pytest.mark.parametrize(
    ("name", "layers", "steps", "last", "learning_rate"),
    [
        ("gpt2-small", 12, 300, 116, 6e-4),
        ("gpt2-medium", 24, 500, 200, 6e-4),
        ("gpt2-large", 36, 600, 546, 3e-4),
        ("gpt2-xl", 48, 800, 714, 3e-4),
    ],
)
def test_published_schedules_leave_steps_after_the_last_removal(
    name: str, layers: int, steps: int, last: int, learning_rate: float
) -> None:
    published = PUBLISHED[name]
    assert (published.num_layers, published.steps, published.learning_rate) == (layers, steps, learning_rate)
    assert published.schedule.last_step(layers) == last
    assert published.cosine_steps >= steps > last


@pytest.mark.parametrize("num_layers", [1, 4, 12, 30, 80])
@pytest.mark.parametrize("steps", [300, 1000, 5000])
def test_derived_schedules_end_in_time(num_layers: int, steps: int) -> None:
    schedule = derived_schedule(num_layers, steps)
    removals = planned(schedule, num_layers)
    assert len(removals) == 3 * num_layers + 3
    times = [step for step, _, _ in removals]
    assert times == sorted(set(times)), "norms go one at a time"
    assert times[-1] <= steps
    shortest = 2 + 3 * num_layers + 2
    assert times[-1] <= max(0.6 * steps, shortest + 20 * steps // 300)
    assert times[-1] >= 0.55 * steps, "gaps of whole steps, rounded, take about as long"


def test_a_derived_schedule_of_gpt2_smalls_pace_is_gpt2_smalls() -> None:
    assert derived_schedule(12, round(116 / 0.6) + 1) == PUBLISHED["gpt2-small"].schedule


@pytest.mark.parametrize(
    ("values", "layers", "message"),
    [
        ({"steps": 20}, 12, "an impossible schedule: the last of 39 removals .* but there are 20 steps"),
        (
            {"schedule": "gpt2-small"},
            24,
            "for 12 layers, and the model has 24: use `schedule=derived`",
        ),
        ({"schedule": "gpt2-smal"}, 12, "unknown schedule 'gpt2-smal'. Did you mean 'gpt2-small'"),
        ({"schedule": "gpt2-small", "steps": 100}, 12, "made before step 116, but there are 100 steps"),
        ({"first_layer": 13}, 12, "first_layer is 13, and the model has 12 layers"),
        ({"first_layer": 0}, 12, "first_layer must be more than 0"),
        ({"value_gap": 0}, 12, "value_gap must be more than 0, not 0"),
        ({"first_step": 0}, 12, "first_step must be at least 2, not 0"),
    ],
)
def test_impossible_schedules_are_refused(values: dict[str, Any], layers: int, message: str) -> None:
    with pytest.raises(InputError, match=message):
        NormRemovalConfig(**values).removal_schedule(layers)


def test_single_gaps_can_be_changed() -> None:
    schedule = NormRemovalConfig(schedule="gpt2-small", value_gap=5).removal_schedule(12)
    assert schedule == RemovalSchedule(20, 2, 2, 5, 2, 10)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"batch_size": 0}, "batch_size must be more than 0"),
        ({"auxiliary_weight": -1.0}, "auxiliary_weight must not be negative"),
        ({"spike_threshold": 0.0}, "spike_threshold must be more than 0"),
        ({"learning_rate": -1e-3}, "learning_rate must be more than 0"),
    ],
)
def test_numbers_out_of_range_are_refused(values: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        NormRemovalConfig(**values)


@pytest.mark.parametrize("schedule", ["gpt2-small", "derived"])
def test_the_learning_rate_ends_at_0_whatever_the_steps(schedule: str) -> None:
    for steps in (150, 700):
        recipe = NormRemovalConfig(schedule=schedule, steps=steps).recipe("python", "gpt2", 512)
        assert recipe.steps == recipe.last_step == steps


def test_a_published_run_stops_before_its_cosine_ends() -> None:
    recipe = NormRemovalConfig(schedule="gpt2-large").recipe("python", "gpt2", 512)
    assert (recipe.steps, recipe.last_step, recipe.warmup_steps) == (1200, 600, 15)
    assert recipe.optimizer.learning_rate == 3e-4
    assert recipe.optimizer.final_learning_rate_fraction == 0
