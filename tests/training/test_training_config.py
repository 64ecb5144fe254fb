from __future__ import annotations

from dataclasses import fields, replace
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
import yaml
from tiny import tiny_recipe
from transformers import AutoModelForCausalLM, AutoModelForImageClassification

from mixln.errors import InputError
from mixln.models import language_models
from mixln.placement import PlacementError
from mixln.tasks import Recipe, check_model, model_config
from mixln.tasks.image_classification import image_model_config
from mixln.tasks.image_config import ImageTrainingConfig
from mixln.tasks.kinds import IMAGES, LANGUAGE, kind_of
from mixln.tasks.recipes import KIND, find_recipe, kind_of_recipe, list_recipes, load_recipe, recipes_of

TABLE_9 = {
    # hidden, intermediate, heads, layers, steps, peak learning rate, parameters in millions (vocabulary 32,000)
    "71m": (512, 1368, 8, 12, 10_000, 1e-3, 71),
    "130m": (768, 2048, 12, 12, 20_000, 1e-3, 134),
    "250m": (768, 2560, 16, 24, 40_000, 1e-3, 247),
    "1b": (2048, 5461, 32, 24, 100_000, 5e-4, 1339),
    "7b": (4096, 11008, 32, 32, 150_000, 5e-4, 6738),
}


def read(name: str, *overrides: str) -> Recipe:
    options = [override.removeprefix("--") for override in overrides]
    return check_model(load_recipe(name, dict(zip(options[::2], options[1::2], strict=True))))


@pytest.mark.parametrize("name", list(TABLE_9))
def test_published_recipes_are_those_of_table_9(name: str) -> None:
    hidden, intermediate, heads, layers, steps, rate, millions = TABLE_9[name]
    recipe = read(name)
    model = recipe.model
    assert (model.hidden_size, model.intermediate_size) == (hidden, intermediate)
    assert (model.num_attention_heads, model.num_hidden_layers) == (heads, layers)
    assert (recipe.steps, recipe.optimizer.learning_rate) == (steps, rate)
    assert recipe.tokens_per_step == 131_072
    assert recipe.warmup_steps == steps // 10
    with torch.device("meta"):
        built = AutoModelForCausalLM.from_config(model_config(recipe.model, 256, 32_000))
    assert sum(p.numel() for p in built.parameters()) / 1e6 == pytest.approx(millions, rel=0.01)


def test_every_recipe_is_listed_and_valid() -> None:
    assert recipes_of([LANGUAGE]) == ["pico", "nano", *TABLE_9, "qwen2.5-0.5b", "olmo-1b", "olmo-7b"]
    assert recipes_of([IMAGES]) == ["vit-nano-cifar", "vit-tiny-imagenet", "vit-small-imagenet"]
    assert list_recipes() == [*recipes_of([LANGUAGE]), *recipes_of([IMAGES])]


@pytest.mark.parametrize("name", list_recipes())
def test_every_recipe_is_valid(name: str) -> None:
    recipe = load_recipe(name)
    kind = kind_of(recipe)
    assert type(recipe) is kind.config
    if kind is LANGUAGE or find_spec("timm") is not None:
        kind.check(recipe)
    assert load_recipe(recipe) == recipe
    assert load_recipe(name, {"steps": recipe.steps + 1}) == replace(recipe, steps=recipe.steps + 1)
    assert kind.positions(recipe) > 1
    assert f"{recipe.model.num_hidden_layers} layers" in kind.model_in_words(recipe)
    assert f"{recipe.last_step:,} of {recipe.batch_size}" in kind.budget_in_words(recipe)
    assert kind.unit in kind.budget_in_words(recipe)


def test_nano_is_the_default_recipe_of_about_3_million_parameters_in_12_layers() -> None:
    recipe = read("nano")
    assert recipe == Recipe()
    assert recipe.model.num_hidden_layers >= 12
    with torch.device("meta"):
        built = AutoModelForCausalLM.from_config(model_config(recipe.model, 256, recipe.data.vocab_size))
    assert 2.5e6 < sum(p.numel() for p in built.parameters()) < 3.5e6


def test_overrides_are_typed_and_win_over_the_recipe() -> None:
    recipe = read("71m", "--model.placement", "lns", "--optimizer.learning_rate", "3e-4", "--steps", "20")
    assert (recipe.model.placement, recipe.optimizer.learning_rate, recipe.steps) == ("lns", 3e-4, 20)


def test_a_recipe_file_states_only_fields_that_there_are() -> None:
    for name in list_recipes():
        own = {field.name for field in fields(kind_of_recipe(name).config)}
        assert set(yaml.safe_load(find_recipe(name).read_text())) <= {KIND, *own}


@pytest.mark.parametrize(("name", "parameters"), [("vit-tiny-imagenet", 5.7), ("vit-small-imagenet", 22.05)])
def test_the_recipes_of_table_6_are_what_they_say(name: str, parameters: float) -> None:
    """Mix-LN, table 6: 120 epochs of ImageNet-1K, 20 of warmup, 4e-3 for a batch of 4,096."""
    recipe = load_recipe(name)
    assert isinstance(recipe, ImageTrainingConfig)
    assert recipe.steps == -(-120 * 1_281_167 // recipe.batch_size)
    assert recipe.warmup_steps == -(-20 * 1_281_167 // recipe.batch_size)
    assert recipe.optimizer.learning_rate == pytest.approx(4e-3 * recipe.batch_size / 4096)
    assert recipe.optimizer.learning_rate * recipe.optimizer.final_learning_rate_fraction == pytest.approx(1e-6)
    assert (recipe.optimizer.name, recipe.optimizer.weight_decay, recipe.optimizer.max_grad_norm) == ("adamw", 0.05, 0)
    made = recipe.augmentation
    assert (made.auto_augment, made.color_jitter, made.mixup, made.cutmix) == ("rand-m9-mstd0.5-inc1", 0.4, 0.8, 1.0)
    assert (made.label_smoothing, made.erasing, recipe.model.drop_path_rate) == (0.1, 0.25, 0.1)
    with torch.device("meta"):
        config = image_model_config(recipe.model, list(map(str, range(1000))))
        built = AutoModelForImageClassification.from_config(config)
    assert sum(p.numel() for p in built.parameters()) / 1e6 == pytest.approx(parameters, rel=0.01)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"steps": 0}, "steps must be more than 0"),
        ({"batch_size": -1}, "batch_size must be more than 0"),
        ({"micro_batch_size": -2}, "micro_batch_size"),
        ({"micro_batch_size": 0}, "micro_batch_size"),
        ({"stop_step": 99}, "stop_step"),
        ({"seed": -1}, "seed must not be negative"),
        ({"evaluate_every": 0}, "evaluate_every"),
        ({"model": {"num_attention_heads": 0}}, "num_attention_heads must be more than 0"),
        ({"model": {"num_attention_heads": 5}}, "not a multiple of the number of attention heads"),
        ({"model": {"num_key_value_heads": 3}}, "does not divide"),
        ({"model": {"hidden_size": 12}}, "even"),
        ({"model": {"initializer_range": -0.1}}, "initializer_range"),
        ({"model": {"embedding_std": 0.0}}, "embedding_std"),
        ({"optimizer": {"learning_rate": float("nan")}}, "learning_rate"),
        ({"optimizer": {"learning_rate": -1.0}}, "learning_rate"),
        ({"optimizer": {"beta2": 1.0}}, "beta2"),
        ({"optimizer": {"warmup_steps": 50}}, "warmup_steps"),
        ({"optimizer": {"max_grad_norm": -1.0}}, "max_grad_norm"),
    ],
)
def test_what_makes_no_sense_is_refused_by_name(change: dict[str, object], message: str) -> None:
    recipe = tiny_recipe(Path("unused"))
    with pytest.raises(InputError, match=message):
        check_model(changed(recipe, change))


def changed(recipe: Recipe, change: dict[str, object]) -> Recipe:
    nested = {
        name: replace(getattr(recipe, name), **value) if isinstance(value, dict) else value
        for name, value in change.items()
    }
    return replace(recipe, **nested)


def test_a_placement_that_there_is_not_is_refused_before_any_work() -> None:
    recipe = tiny_recipe(Path("unused"))
    with pytest.raises(PlacementError, match=r"unknown scheme 'sandwhich'\. Did you mean 'sandwich'"):
        check_model(replace(recipe, model=replace(recipe.model, placement="sandwhich")))


@pytest.mark.parametrize(
    ("overrides", "reason"),
    [
        (["--model.placement", "groupnorm(groups=7)"], r"7 groups of channels do not divide hidden_size \(128\)"),
        (["--model.architecture", "nope"], "unknown architecture 'nope'.*gpt2"),
        (["--model.architecture", "gpt2", "--model.rope_theta", "5"], "gpt2 has no rope_theta"),
        (["--model.architecture", "gpt2", "--model.num_key_value_heads", "2"], "gpt2 has no num_key_value_heads"),
        (["--model.architecture", "olmo", "--model.rms_norm_eps", "1e-3"], "olmo has no rms_norm_eps"),
    ],
)
def test_what_does_not_go_with_the_model_is_refused(overrides: list[str], reason: str) -> None:
    with pytest.raises(InputError, match=reason):
        read("nano", *overrides)


@pytest.mark.parametrize("name", language_models())
def test_a_recipe_may_name_any_language_model(name: str) -> None:
    config = model_config(read("nano", "--model.architecture", name).model, 256, 300)
    assert (config.hidden_size, config.num_hidden_layers, config.vocab_size) == (128, 12, 300)
    assert config.placement == "pre"
    with torch.device("meta"):
        built = AutoModelForCausalLM.from_config(config)
    assert not any(module.p for module in built.modules() if isinstance(module, torch.nn.Dropout))
