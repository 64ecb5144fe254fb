"""Recipes as files and settings: what is written in them, in the ways in which people write numbers."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from mixln.errors import InputError
from mixln.tasks import Recipe
from mixln.tasks.healing_config import HealingConfig
from mixln.tasks.kinds import IMAGES, KINDS, LANGUAGE, RecipeKind
from mixln.tasks.recipes import field_types, flat_defaults, flat_fields, load_recipe
from mixln.written import written_float, written_int


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("1e3", 1000),
        ("1M", 1_000_000),
        ("20k", 20_000),
        ("20K", 20_000),
        ("2e6", 2_000_000),
        ("1.5B", 1_500_000_000),
        ("71m", 71_000_000),
        ("2T", 2 * 10**12),
        ("1_000", 1000),
        ("0.001M", 1000),
        ("1200e-2", 12),
        ("-3", -3),
        ("0", 0),
        ("0e99999", 0),
        ("1.5", None),
        ("1e-3", None),
        ("1e99999", None),
        ("many", None),
        ("1x", None),
        ("k", None),
        ("1,000", None),
        ("", None),
        ("inf", None),
    ],
)
def test_whole_numbers_as_people_write_them(text: str, number: int | None) -> None:
    assert written_int(text) == number


def test_numbers_as_people_write_them() -> None:
    assert [written_float(text) for text in ("1e-3", ".5", "20k", "1M", "3")] == [1e-3, 0.5, 20_000, 1e6, 3]
    assert [written_float(text) for text in ("1m", "many", "", "0.1.2")] == [None] * 4, "1m could be a thousandth"


def test_a_file_of_ones_own(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(
        "steps: 20k\nbatch_size: 1e1\nstop_step: 100.0\nmodel: {placement: lns, embedding_std: null}\n"
        "optimizer: {learning_rate: 1e-4}\nexecution: {trackers: []}\ndata: {cross_documents: yes}\n"
    )
    recipe = load_recipe(path)
    assert (recipe.steps, recipe.batch_size, recipe.stop_step) == (20_000, 10, 100)
    assert (recipe.model.placement, recipe.optimizer.learning_rate) == ("lns", 1e-4)
    assert (recipe.execution.trackers, recipe.data.cross_documents) == ((), True)
    assert recipe.model.hidden_size == Recipe().model.hidden_size


def test_settings_win_over_the_file_and_short_names_are_the_same_fields() -> None:
    for short, place in LANGUAGE.short_names.items():
        assert place in field_types()
        if field_types()[place] is str:
            assert load_recipe("71m", {short: "lns"}) == load_recipe("71m", {place: "lns"}) != load_recipe("71m")
    recipe = load_recipe("nano", {"tokens": "1M", "optimizer.warmup_steps": 400, "stop_step": 450})
    assert recipe.steps == -(-1_000_000 // recipe.tokens_per_step)
    assert load_recipe(None, default=Recipe(steps=7)).steps == load_recipe(Recipe(steps=7)).steps == 7
    assert set(flat_fields(Recipe())) == set(field_types())


@pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)
def test_short_names_and_defaults_are_those_of_fields(kind: RecipeKind) -> None:
    types = field_types(kind.config)
    assert set(kind.short_names.values()) <= types.keys()
    recipe = load_recipe(kind.example)
    assert flat_fields(recipe).keys() == types.keys()
    assert flat_defaults(kind.config).keys() <= types.keys()
    assert load_recipe(recipe, {kind.source: "elsewhere"}) == load_recipe(
        kind.example, {kind.short_names[kind.source]: "elsewhere"}
    )
    assert flat_defaults(Recipe) == flat_fields(Recipe())


@pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)
@pytest.mark.parametrize("other", KINDS.values(), ids=KINDS)
def test_a_setting_of_another_kind_is_refused_by_one_sentence_that_says_what_to_do(
    kind: RecipeKind, other: RecipeKind
) -> None:
    own = {*kind.short_names, *kind.budgets, *field_types(kind.config)}
    for name in ({*other.short_names, *other.budgets, *field_types(other.config)} - own) if kind is not other else ():
        with pytest.raises(InputError) as error:
            load_recipe(kind.example, {name: "1"})
        message = str(error.value)
        assert f"is for {other.about}, and this recipe trains {kind.one}: choose `recipe={other.example}`" in message
        assert "\n" not in message


def test_a_recipe_of_a_kind_that_a_command_does_not_take_is_refused() -> None:
    with pytest.raises(
        InputError, match=r"`recipe=vit-nano-cifar` trains a classifier of images.*Choose one of pico, "
    ):
        load_recipe("vit-nano-cifar", kinds=[LANGUAGE])
    with pytest.raises(InputError, match=r"the recipe trains a language model.*Choose one of vit-nano-cifar, "):
        load_recipe(Recipe(), kinds=[IMAGES])


def test_a_file_of_images_says_its_kind_and_must_name_images(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text("kind: images\nsteps: 7\ndata: {source: pictures}\n")
    assert load_recipe(path).data.source == "pictures"
    path.write_text("kind: images\nsteps: 7\n")
    assert load_recipe(path, {"images": "pictures"}).data.source == "pictures"
    with pytest.raises(InputError, match=r"lacks data.source, which has no default: give `images`"):
        load_recipe(path)
    path.write_text("kind: sounds\n")
    with pytest.raises(InputError, match=r"mine\.yaml: kind must be one of language, images, not 'sounds'"):
        load_recipe(path)
    path.write_text("data: {source: pictures}\n")
    with pytest.raises(InputError, match=r"mine.yaml: `images` is for classifiers of images.*or give `text`"):
        load_recipe(path)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("stepss: 5", "mine.yaml: a recipe has no field 'stepss'. Did you mean 'steps'?"),
        ("model: {num_layers: 5}", "no field 'model.num_layers'. Did you mean"),
        ("steps: 1.5", "mine.yaml: steps must be a whole number, not 1.5"),
        ("steps: many", "mine.yaml: steps must be a whole number, not 'many'"),
        ("steps: -1", "mine.yaml: steps must be more than 0"),
        ("tokens: 1000", "no field 'tokens'"),
        ("just words", "holds no fields"),
        ("a: [", "cannot be read as YAML"),
        ("optimizer: {learning_rate: 1" + "0" * 400 + "}", "must be a number that fits"),
        ("precision: float8", "precision must be one of auto, float32, bfloat16"),
    ],
)
def test_a_file_that_is_wrong_is_named_with_the_field(text: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text(text)
    with pytest.raises(InputError) as raised:
        load_recipe(tmp_path / "mine.yaml")
    assert message in str(raised.value)


def test_no_tokens_are_refused() -> None:
    with pytest.raises(InputError, match="`tokens` must be at least 1"):
        load_recipe("nano", {"tokens": 0})


def test_fewer_tokens_than_one_step_takes_are_refused_and_others_said() -> None:
    """A request for 10 tokens trained on 2,048."""
    with pytest.raises(
        InputError, match=r"`tokens=10` is less than one step, which takes 2,048 tokens \(8 rows of 256\)"
    ):
        load_recipe("nano", {"tokens": 10})
    with pytest.raises(InputError, match=r"`healing.tokens=4095` is less than one step, which takes 4,096"):
        HealingConfig(tokens=4095).recipe("python", "org/model")
    assert load_recipe("nano", {"tokens": 2048}).steps == 1
    assert load_recipe("nano", {"tokens": 2049}).steps == 2
    assert HealingConfig(tokens=4096).recipe("python", "org/model").steps == 1


def test_a_named_recipe_takes_nothing_of_the_default() -> None:
    pico = load_recipe("pico")
    assert load_recipe("nano", default=pico) == load_recipe("nano") != pico
    assert load_recipe(None, {"steps": 3}, default=pico) == replace(pico, steps=3)
