from __future__ import annotations

import copy
import math
import pickle
import warnings

import pytest
from placement_tools import PLACEMENTS

from mixln.placement import (
    BlockPlan,
    InitRule,
    Placement,
    PlacementError,
    PlacementWarning,
    StackPlan,
    list_schemes,
    schemes,
)
from mixln.placement.plan import BLOCK_ROLES

pytestmark = pytest.mark.filterwarnings("ignore::mixln.placement.PlacementWarning")


def plan_of(text: str, num_layers: int) -> StackPlan:
    return Placement.parse(text).plan(num_layers)


def count_post(plan: StackPlan) -> int:
    """Post-LN blocks, all of which must stand before the first Pre-LN block."""
    kinds = [block.attention.output_norm is not None for block in plan.blocks]
    assert kinds == sorted(kinds, reverse=True)
    return sum(kinds)


@pytest.mark.parametrize("text", PLACEMENTS)
def test_a_plan_is_a_pure_value(text: str) -> None:
    placement = Placement.parse(text)
    before = copy.deepcopy(placement)
    first, second = placement.plan(6), placement.plan(6)
    assert first == second
    assert placement == before
    for twin in (copy.deepcopy(first), pickle.loads(pickle.dumps(first))):
        assert twin == first
        assert twin.same_function_as(first)
    assert len(first.blocks) == first.num_layers == 6
    assert placement.plan(7) != first


@pytest.mark.parametrize("text", PLACEMENTS)
def test_a_plan_can_be_a_key(text: str) -> None:
    first, second = (Placement.parse(text).plan(4) for _ in range(2))
    assert {first.blocks[0].attention: 1}[second.blocks[0].attention] == 1
    assert hash(first.final_norm) == hash(second.final_norm)


@pytest.mark.parametrize("text", PLACEMENTS)
def test_the_given_depths_are_left_alone_and_pick_out_those_blocks(text: str) -> None:
    depths = [1, 3, 4, 8]
    placement = Placement.parse(text)
    whole = placement.plan(8)
    pruned = placement.plan(4, depths=depths, original_num_layers=8)
    assert depths == [1, 3, 4, 8]
    assert pruned.blocks == tuple(whole.blocks[depth - 1] for depth in depths)
    assert pruned.num_layers == 8


@pytest.mark.parametrize(
    ("num_layers", "depths", "total"),
    [
        (0, None, None),
        (2, [1], None),
        (2, [2, 1], None),
        (2, [1, 1], None),
        (2, [0, 1], None),
        (2, [1, 5], 4),
        (3, None, 2),
    ],
)
def test_depths_that_do_not_fit_are_an_error(num_layers: int, depths: list[int] | None, total: int | None) -> None:
    with pytest.raises(PlacementError):
        Placement.parse("pre").plan(num_layers, depths=depths, original_num_layers=total)


def test_mix_at_its_ends_is_pre_and_post() -> None:
    for num_layers in (1, 2, 7, 12):
        assert plan_of("mix(alpha=0)", num_layers) == plan_of("pre", num_layers)
        assert plan_of("mix(alpha=1)", num_layers) == plan_of("post", num_layers)
        assert plan_of("mix(post_layers=0)", num_layers) == plan_of("pre", num_layers)
        assert plan_of(f"mix(post_layers={num_layers})", num_layers) == plan_of("post", num_layers)


def is_post(block: BlockPlan) -> bool:
    return block.attention.output_norm is not None and block.attention.input_norm is None


def test_alpha_of_k_over_l_makes_k_post_layers_for_every_depth_to_200() -> None:
    for num_layers in range(1, 201):
        for k in range(num_layers + 1):
            alpha = k / num_layers
            if k > 0:
                assert is_post(schemes.mix(k, num_layers, alpha=alpha)), (k, num_layers)
                below = alpha - 1e-6
                assert not is_post(schemes.mix(k, num_layers, alpha=below)), (k, num_layers)
                if k > 1:
                    assert is_post(schemes.mix(k - 1, num_layers, alpha=below)), (k, num_layers)
            if k < num_layers:
                assert not is_post(schemes.mix(k + 1, num_layers, alpha=alpha)), (k, num_layers)


def test_alpha_written_as_text_loses_no_layer_either() -> None:
    for num_layers in range(1, 201):
        for k in range(num_layers + 1):
            alpha = Placement.parse(f"mix(alpha={k / num_layers})").scheme.options["alpha"]
            assert isinstance(alpha, float)
            assert k == 0 or is_post(schemes.mix(k, num_layers, alpha=alpha)), (k, num_layers)
            assert k == num_layers or not is_post(schemes.mix(k + 1, num_layers, alpha=alpha)), (k, num_layers)


@pytest.mark.parametrize(
    ("alpha", "num_layers", "expected"),
    [
        ("0.29", 100, 29),
        ("0.07", 100, 7),
        ("0.25", 12, 3),
        ("0.25", 13, 3),
        ("0.0625", 32, 2),
        ("0.33", 24, 7),
        ("0.3", 3, 0),
        ("0.99", 10, 9),
    ],
)
def test_whole_mix_plans_have_floor_alpha_l_post_layers(alpha: str, num_layers: int, expected: int) -> None:
    assert count_post(plan_of(f"mix(alpha={alpha})", num_layers)) == expected


def test_more_post_layers_than_layers_is_an_error() -> None:
    assert count_post(plan_of("mix(post_layers=4)", 4)) == 4
    with pytest.raises(PlacementError, match="post_layers=5, but the model has 4 layers"):
        plan_of("mix(post_layers=5)", 4)


def test_lns_scales_by_one_over_root_of_the_depth() -> None:
    for depth, block in enumerate(plan_of("lns", 12).blocks, start=1):
        assert block.attention.gain == block.feed_forward.gain == pytest.approx(depth**-0.5, rel=1e-12)


@pytest.mark.parametrize("num_layers", [3, 12, 32])
def test_deepnorm_scales_stream_and_init_by_the_depth(num_layers: int) -> None:
    plan = plan_of("deepnorm", num_layers)
    for block in plan.blocks:
        assert block.attention.residual_scale == pytest.approx((2 * num_layers) ** 0.25, rel=1e-12)
        assert block.feed_forward.residual_scale == block.attention.residual_scale
        gains = {role: rule.gain for role, rule in block.init.items()}
        small = pytest.approx(1 / (8 * num_layers) ** 0.25, rel=1e-12)
        assert gains == {role: 1.0 if role in ("query", "key") else small for role in BLOCK_ROLES}
        assert {rule.distribution for rule in block.init.values()} == {"xavier"}


def test_deepnorm_takes_the_residual_scale_of_the_published_code() -> None:
    plan = plan_of("deepnorm(residual_scale=2.8284271247461903)", 12)
    assert {block.attention.residual_scale for block in plan.blocks} == {8**0.5}
    assert plan.blocks[0].init == plan_of("deepnorm", 12).blocks[0].init


def test_rules_give_the_standard_deviations_of_the_papers() -> None:
    shape = {"base_std": 0.03, "hidden_size": 50, "fan_in": 20, "fan_out": 60}
    assert InitRule("base", 2).standard_deviation(**shape) == pytest.approx(0.06)
    assert InitRule("small").standard_deviation(**shape) == pytest.approx(math.sqrt(2 / 250))
    assert InitRule("xavier", 0.5).standard_deviation(**shape) == pytest.approx(0.5 * math.sqrt(2 / 80))


def test_scaled_init_divides_only_the_matrices_that_write_to_an_unnormalised_stream() -> None:
    plan = plan_of("mix(post_layers=2)+scaled_init", 6)
    assert plan.init == InitRule("small")
    for position in range(2):
        assert plan.blocks[position].init == {}
    for position in range(2, 6):
        rule = InitRule("small", (2 * 6) ** -0.5)
        assert plan.blocks[position].init == {"attention_output": rule, "down": rule}
        assert plan.init_rule("up", position) == InitRule("small")
        assert plan.init_rule("down", position) == rule


@pytest.mark.parametrize("scheme", list_schemes())
def test_scaled_init_changes_no_function_and_scaled_embed_does(scheme: str) -> None:
    plain = plan_of(scheme, 4)
    assert plan_of(f"{scheme}+scaled_init", 4).same_function_as(plain)
    assert not plan_of(f"{scheme}+scaled_embed", 4).same_function_as(plain)
    assert plan_of(f"{scheme}+scaled_embed", 4).embedding_factor(64) == 8
    assert plain.embedding_factor(64) == 1


@pytest.mark.parametrize("scheme", list_schemes())
def test_only_lns_warns_when_its_init_is_scaled(scheme: str) -> None:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        plan_of(f"{scheme}+scaled_init", 4)
    assert [warning.category for warning in caught] == ([PlacementWarning] if scheme == "lns" else [])


def test_same_function_looks_at_every_block() -> None:
    assert not plan_of("mix(post_layers=1)", 4).same_function_as(plan_of("mix(post_layers=2)", 4))
    assert not plan_of("lns", 4).same_function_as(plan_of("pre", 4))
    assert not plan_of("pre", 4).same_function_as(plan_of("pre", 5))
    pruned = Placement.parse("pre").plan(2, depths=[1, 4], original_num_layers=4)
    assert pruned.same_function_as(plan_of("pre", 2))
    pruned_lns = Placement.parse("lns").plan(2, depths=[1, 4], original_num_layers=4)
    assert not pruned_lns.same_function_as(plan_of("lns", 2))


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("none+dyt", "dyt takes the place of every norm of the placement, and there is none"),
        ("pre+dyt+derf", "derf takes the place .* others than the architecture's own"),
        ("groupnorm+dyt", "others than the architecture's own"),
        ("peri+scaled_embed", "scaled_embed does nothing"),
        ("lns+scaled_init", "takes away the effect"),
    ],
)
@pytest.mark.filterwarnings("default::mixln.placement.PlacementWarning")
def test_combinations_that_do_not_do_what_they_say_warn(text: str, reason: str) -> None:
    with pytest.warns(PlacementWarning, match=reason):
        plan_of(text, 4)
