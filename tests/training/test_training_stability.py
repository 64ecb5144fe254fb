from __future__ import annotations

import warnings
from collections.abc import Iterator
from dataclasses import replace

import pytest

from mixln.placement import NORM, BlockPlan, PlacementWarning, SublayerPlan, register_scheme
from mixln.placement.registry import SCHEMES
from mixln.tasks import Recipe, check_model
from mixln.tasks.kinds import LANGUAGE
from mixln.tasks.recipes import load_recipe, recipes_of
from mixln.tasks.stability import num_parameters, stability_warnings


def with_placement(name: str, placement: str) -> Recipe:
    recipe = load_recipe(name)
    return replace(recipe, model=replace(recipe.model, placement=placement))


@pytest.fixture
def late() -> Iterator[str]:
    """A scheme of a user's own with N_out in every block, attention only."""

    @register_scheme("late")
    def late(depth: int, num_layers: int) -> BlockPlan:  # noqa: ARG001
        """N_out on the attention."""
        return BlockPlan(attention=SublayerPlan(output_norm=NORM), feed_forward=SublayerPlan(input_norm=NORM))

    yield "late"
    del SCHEMES["late"]


@pytest.mark.parametrize("name", recipes_of([LANGUAGE]))
def test_the_shipped_recipes_are_within_what_is_known(name: str) -> None:
    assert stability_warnings(load_recipe(name)) == []


@pytest.mark.parametrize("placement", ["pre", "lns", "sandwich", "mix(post_layers=0)"])
def test_without_post_layers_there_is_nothing_to_warn_of(placement: str) -> None:
    recipe = with_placement("7b", placement)
    recipe = replace(recipe, optimizer=replace(recipe.optimizer, learning_rate=1e-2, warmup_steps=0))
    assert stability_warnings(recipe) == []


@pytest.mark.parametrize("placement", ["post", "mix", "deepnorm", "late"])
@pytest.mark.parametrize(("warmup", "warns"), [(0, True), (999, True), (1000, False), (None, False)])
@pytest.mark.usefixtures("late")
def test_post_layers_need_a_warmup_of_a_tenth(placement: str, warmup: int | None, warns: bool) -> None:
    recipe = with_placement("71m", placement)
    recipe = replace(recipe, optimizer=replace(recipe.optimizer, warmup_steps=warmup))
    found = stability_warnings(recipe)
    assert len(found) == warns
    if warns:
        assert f"warms up for {warmup} of 10000 steps" in found[0]
        assert "Xiong et al. 2020" in found[0]
        assert "table 9" in found[0]
        assert "Set optimizer.warmup_steps to 1000" in found[0]


def test_a_tenth_of_few_steps_is_what_the_default_makes_of_it() -> None:
    assert stability_warnings(replace(Recipe(), steps=15, model=replace(Recipe().model, placement="mix"))) == []


@pytest.mark.parametrize(
    ("name", "placement", "reason"),
    [
        ("130m", "post", None),
        ("250m", "post", "1409 at 250M"),
        ("1b", "post", "1434 at alpha=1"),
        ("1b", "mix(alpha=1)", "1434 at alpha=1"),
        ("250m", "mix(alpha=0.5)", None),
        ("250m", "deepnorm", None),
        ("1b", "deepnorm", "1411 at 1B"),
        ("1b", "mix(alpha=0.5)", None),
        ("1b", "mix(alpha=0.75)", "18.86 at 0.5"),
        ("1b", "late", "18.86 at 0.5"),
        ("7b", "mix(post_layers=2)", None),
        ("7b", "mix(alpha=0.25)", "alpha 6.25 %"),
        ("7b", "post", "1409 at 250M"),
    ],
)
@pytest.mark.usefixtures("late")
def test_large_models_take_a_small_share_of_post_layers(name: str, placement: str, reason: str | None) -> None:
    found = stability_warnings(with_placement(name, placement))
    assert len(found) == (reason is not None)
    assert reason is None or reason in found[0]


@pytest.mark.parametrize(
    ("name", "placement", "rate", "reason"),
    [
        ("71m", "mix", 1e-3, None),
        ("71m", "mix", 1.1e-3, "1e-3|0.001 in Mix-LN"),
        ("1b", "mix", 1e-3, "0.0005 in Mix-LN"),
        ("nano", "mix", 2e-3, None),
        ("nano", "deepnorm", 2e-3, None),
        ("nano", "post", 1e-3, None),
        ("nano", "post", 2e-3, "gutenberg.md: loss 6.67"),
    ],
)
def test_learning_rates_above_the_published(name: str, placement: str, rate: float, reason: str | None) -> None:
    recipe = with_placement(name, placement)
    found = stability_warnings(replace(recipe, optimizer=replace(recipe.optimizer, learning_rate=rate)))
    assert len(found) == (reason is not None)
    assert reason is None or any(part in found[0] for part in reason.split("|"))


def test_the_default_comparison_warns_of_nothing() -> None:
    """Its Post-LN was measured to train at its rate; a wider one was not."""
    small = with_placement("pico", "post")
    assert stability_warnings(small) == []
    wide = replace(small, model=replace(small.model, hidden_size=128))
    assert len(stability_warnings(wide)) == 1


def test_everything_wrong_is_said_at_once() -> None:
    recipe = with_placement("7b", "post")
    recipe = replace(recipe, optimizer=replace(recipe.optimizer, learning_rate=1e-3, warmup_steps=10))
    assert len(stability_warnings(recipe)) == 3


def test_layernorm_scaling_with_scaled_init_is_warned_of_by_the_placement_once() -> None:
    recipe = replace(Recipe(), model=replace(Recipe().model, placement="lns+scaled_init", num_hidden_layers=11))
    with pytest.warns(PlacementWarning, match="Curse of Depth"):
        check_model(recipe)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert stability_warnings(recipe) == []


@pytest.mark.parametrize(("name", "millions"), [("nano", 3.4), ("71m", 71), ("250m", 247), ("1b", 1339), ("7b", 6738)])
def test_parameters_are_counted_without_allocating_them(name: str, millions: float) -> None:
    assert num_parameters(load_recipe(name)) / 1e6 == pytest.approx(millions, rel=0.01)
