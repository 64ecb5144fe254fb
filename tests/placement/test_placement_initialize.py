from __future__ import annotations

import pytest
import torch
from placement_tools import PLACEMENTS, ROLES, WIDTH, Stack
from torch import nn

from mixln.placement import FusedRoles, Placement, PlacementError, StackPlan, draw, find_role, initialize

pytestmark = pytest.mark.filterwarnings("ignore::mixln.placement.PlacementWarning")


def weights(text: str, *, seed: int = 0, width: int = WIDTH, num_layers: int = 3) -> dict[str, torch.Tensor]:
    plan = Placement.parse(text).plan(num_layers)
    stack = Stack(plan, width=width)
    initialize(stack, plan, ROLES, seed=seed, hidden_size=width)
    return {name: parameter.detach() for name, parameter in stack.named_parameters() if parameter.ndim == 2}


@pytest.mark.parametrize("text", PLACEMENTS)
def test_schemes_share_their_draws_up_to_the_standard_deviation(text: str) -> None:
    reference, other = weights("pre"), weights(text)
    assert reference.keys() == other.keys()
    for name, parameter in other.items():
        ratio = (parameter / reference[name]).median()
        torch.testing.assert_close(parameter, reference[name] * ratio, rtol=1e-5, atol=0)


@pytest.mark.parametrize("text", ["post", "mix", "lns", "sandwich", "pre+scaled_embed"])
def test_schemes_of_one_init_rule_share_their_draws_exactly(text: str) -> None:
    reference = weights("pre")
    for name, parameter in weights(text).items():
        assert torch.equal(parameter, reference[name]), name


def test_draws_depend_on_the_seed() -> None:
    one, again, two = weights("pre", seed=1), weights("pre", seed=1), weights("pre", seed=2)
    for name, parameter in one.items():
        assert torch.equal(parameter, again[name])
        assert not torch.equal(parameter, two[name])


def test_draws_of_two_parameters_of_a_shape_are_not_the_same() -> None:
    drawn = list(weights("pre").values())
    for i, one in enumerate(drawn):
        for other in drawn[i + 1 :]:
            assert one.shape != other.shape or not torch.equal(one, other)


def test_draws_do_not_depend_on_the_global_generator_and_leave_it_alone() -> None:
    torch.manual_seed(1)
    one = weights("pre")
    torch.manual_seed(2)
    plan = Placement.parse("pre").plan(3)
    stack = Stack(plan)
    state = torch.get_rng_state()
    initialize(stack, plan, ROLES, seed=0, hidden_size=WIDTH)
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(parameter, one[name]) for name, parameter in stack.named_parameters() if name in one)


def test_draws_do_not_depend_on_the_order_of_construction_or_on_other_parameters() -> None:
    class Forward(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a = nn.Linear(4, 6)
            self.b = nn.Linear(4, 6)

    class Backward(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.b = nn.Linear(4, 6)
            self.other = nn.Linear(9, 9)
            self.a = nn.Linear(4, 6)

    plan = Placement.parse("pre").plan(1)
    one, two = Forward(), Backward()
    for module in (one, two):
        initialize(module, plan, {"a.weight": "up", "b.weight": "head"}, seed=5, hidden_size=4)
    assert torch.equal(one.a.weight, two.a.weight)
    assert torch.equal(one.b.weight, two.b.weight)
    assert not torch.equal(one.a.weight, one.b.weight)


def test_parameters_without_a_role_are_left_alone() -> None:
    plan = Placement.parse("post").plan(2)
    stack = Stack(plan)
    with torch.no_grad():
        for parameter in stack.parameters():
            parameter.fill_(7)
    initialize(stack, plan, {"head.weight": "head"}, seed=0, hidden_size=WIDTH)
    for name, parameter in stack.named_parameters():
        assert (parameter == 7).all().item() == (name != "head.weight"), name


def std(tensor: torch.Tensor) -> float:
    return tensor.double().std().item()


@pytest.mark.parametrize("num_layers", [2, 6])
def test_deepnorm_gains_are_measured_on_the_weights(num_layers: int) -> None:
    width = 64
    drawn = weights("deepnorm", width=width, num_layers=num_layers)
    gain = (8 * num_layers) ** -0.25
    for position in range(num_layers):
        block = f"blocks.{position}."
        # PyTorch's attention holds q, k and v in one matrix of shape (3d, d), here in the role of a query
        for name, factor in (
            ("attention.inner.in_proj_weight", 1.0),
            ("attention.inner.out_proj.weight", gain),
            ("feed_forward.0.weight", gain),
            ("feed_forward.2.weight", gain),
        ):
            weight = drawn[block + name]
            xavier = (2 / (weight.shape[0] + weight.shape[1])) ** 0.5
            assert std(weight) == pytest.approx(factor * xavier, rel=0.06), name
    assert std(drawn["head.weight"]) == pytest.approx(0.02, rel=0.1)


def test_scaled_init_is_measured_on_the_weights() -> None:
    width, num_layers = 64, 4
    small = (2 / (5 * width)) ** 0.5
    drawn = weights("mix(post_layers=2)+scaled_init", width=width, num_layers=num_layers)
    for name, weight in drawn.items():
        writes = name.endswith(("out_proj.weight", "feed_forward.2.weight"))
        divided = writes and name.split(".")[1] in ("2", "3")
        assert std(weight) == pytest.approx(small * ((2 * num_layers) ** -0.5 if divided else 1), rel=0.1), name


def test_standard_deviations_can_be_given() -> None:
    plan = Placement.parse("pre").plan(1)
    stack = Stack(plan, vocabulary=500, width=32)
    initialize(stack, plan, ROLES, seed=0, hidden_size=32, base_std=0.3, embedding_std=2.0)
    assert std(stack.embedding.weight) == pytest.approx(2.0, rel=0.05)
    assert std(stack.head.weight) == pytest.approx(0.3, rel=0.05)


def test_only_the_wanted_parameters_are_drawn() -> None:
    plan = Placement.parse("pre").plan(1)
    stack = Stack(plan)
    before = stack.embedding.weight.detach().clone()
    head = stack.head.weight.detach().clone()
    initialize(stack, plan, ROLES, seed=0, hidden_size=WIDTH, wanted=lambda parameter: parameter is stack.head.weight)
    assert torch.equal(stack.embedding.weight, before)
    assert not torch.equal(stack.head.weight, head)


def test_a_meta_model_and_a_model_without_roles_are_errors() -> None:
    plan: StackPlan = Placement.parse("pre").plan(1)
    with torch.device("meta"):
        stack = Stack(plan)
    with pytest.raises(PlacementError, match=r"'embedding.weight' is on the meta device: call to_empty"):
        initialize(stack, plan, ROLES, seed=0, hidden_size=WIDTH)
    with pytest.raises(
        PlacementError, match=r"no parameter of Stack has a role; the patterns are \['decoder.weight'\]"
    ):
        initialize(stack, plan, {"decoder.weight": "head"}, seed=0, hidden_size=WIDTH)


def test_meta_then_empty_then_initialise_is_a_normal_construction() -> None:
    plan = Placement.parse("deepnorm").plan(2)
    with torch.device("meta"):
        stack = Stack(plan)
    stack.to_empty(device="cpu")
    initialize(stack, plan, ROLES, seed=4, hidden_size=WIDTH)
    expected = weights("deepnorm", seed=4, num_layers=2)
    for name, parameter in stack.named_parameters():
        assert name not in expected or torch.equal(parameter, expected[name])


def test_roles_are_found_by_whole_names_and_give_the_block() -> None:
    assert find_role("layers.12.q.weight", {"layers.*.q.weight": "query"}) == ("query", 12)
    assert find_role("head.weight", {"head.weight": "head"}) == ("head", None)
    for name in ("layers.x.q.weight", "model.layers.1.q.weight", "layers.1.q.weight.more", "layers.1.qxweight"):
        assert find_role(name, {"layers.*.q.weight": "query"}) is None


def test_a_draw_in_bfloat16_is_the_rounded_float32_draw() -> None:
    full, half = torch.empty(8, 8), torch.empty(8, 8, dtype=torch.bfloat16)
    draw(full, "x", std=0.5, seed=3)
    draw(half, "x", std=0.5, seed=3)
    assert torch.equal(full.to(torch.bfloat16), half)


@pytest.mark.parametrize("dim", [0, 1])
def test_each_part_of_a_fused_matrix_has_the_fans_and_gain_of_its_own(dim: int) -> None:
    width, layers = 64, 4
    shape = (3 * width, width) if dim == 0 else (width, 3 * width)

    class Fused(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.empty(shape))

    def drawn(text: str) -> tuple[torch.Tensor, ...]:
        module, plan = nn.ModuleList([Fused()]), Placement.parse(text).plan(layers)
        roles = {"*.weight": FusedRoles(("query", "key", "value"), dim)}
        initialize(module, plan, roles, seed=0, hidden_size=width)
        return module[0].get_parameter("weight").detach().chunk(3, dim)

    xavier = (2 / (width + width)) ** 0.5
    for part, gain in zip(drawn("deepnorm"), (1.0, 1.0, (8 * layers) ** -0.25), strict=True):
        assert part.std().item() == pytest.approx(gain * xavier, rel=0.05)
    # common draws: the same numbers up to their standard deviation
    for part, base, gain in zip(drawn("deepnorm"), drawn("pre"), (1.0, 1.0, (8 * layers) ** -0.25), strict=True):
        torch.testing.assert_close(part, base / 0.02 * gain * xavier)


def test_a_matrix_that_cannot_be_cut_into_its_parts_is_refused() -> None:
    with pytest.raises(PlacementError, match="not of 3 equal parts"):
        draw(torch.empty(4, 4), "weight", std=[1.0, 1.0, 1.0], seed=0)
