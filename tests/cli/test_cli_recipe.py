"""What options make of a recipe, which is checked when all of them are known."""

from __future__ import annotations

from typing import Any

import pytest

from mixln.cli import main
from mixln.tasks.recipe import Recipe


class SeenError(Exception):
    """A command has got as far as its recipe."""


def recipe_of(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> Recipe:
    """The recipe that `mixln compare` plans its runs with."""

    def plan(recipe: Recipe, *_: Any) -> None:
        raise SeenError(recipe)

    monkeypatch.setattr("mixln.studies.compare.plan_jobs", plan)
    with pytest.raises(SeenError) as seen:
        main(["compare", *arguments])
    return seen.value.args[0]


def test_tokens_set_the_steps_before_the_recipe_is_checked(monkeypatch: pytest.MonkeyPatch) -> None:
    assert recipe_of(monkeypatch).steps == 120  # of the quick recipe
    recipe = recipe_of(monkeypatch, "--tokens", "1000000", "--optimizer.warmup-steps", "100", "--stop-step", "300")
    assert recipe.steps == -(-1_000_000 // recipe.tokens_per_step)
    assert (recipe.warmup_steps, recipe.last_step) == (100, 300)


def test_short_options_count_when_the_recipe_is_checked(monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = recipe_of(monkeypatch, "--data.validation-fraction", "0", "--validation-text", "held.txt")
    assert (recipe.data.validation_fraction, recipe.data.validation_corpus) == (0, "held.txt")
    assert recipe_of(monkeypatch, "--embedding-std", "0.5", "--text", "python").model.embedding_std == 0.5


def test_a_recipe_that_does_not_exist_is_named_as_its_option(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", "--recipe", "nope"]) == 2
    assert capsys.readouterr().err.startswith("mixln: --recipe nope: ")
