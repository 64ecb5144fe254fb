"""The shipped recipes against the published ones: Mix-LN (Li, Yin, Liu 2024), table 9, as in the design's section 6."""

from __future__ import annotations

from dataclasses import replace

import pytest

from mixln.data import DataConfig
from mixln.estimation import ModelShape, count_parameters
from mixln.tasks import ModelConfig, Recipe, check_model
from mixln.tasks.recipes import load_recipe
from mixln.training import OptimizerConfig

# hidden, intermediate, heads, layers, steps, stop step, peak learning rate, alpha, tokens of data at least
TABLE_9 = {
    "71m": (512, 1368, 8, 12, 10_000, None, 1e-3, "0.25"),
    "130m": (768, 2048, 12, 12, 20_000, None, 1e-3, "0.25"),
    "250m": (768, 2560, 16, 24, 40_000, None, 1e-3, "0.25"),
    "1b": (2048, 5461, 32, 24, 100_000, None, 5e-4, "0.25"),
    "7b": (4096, 11008, 32, 32, 150_000, 13_000, 5e-4, "0.0625"),
}

# 2 V d + L (4 d^2 + 3 d i + 2 d) + d, V = 32,000: what stock Llama of these sizes has
EXACT = {
    "71m": 70_578_688,
    "130m": 134_105_856,
    "250m": 247_370_496,
    "1b": 1_339_082_752,
    "7b": 6_738_415_616,
}

SIZE_CLASSES = {"71m": 71e6, "130m": 130e6, "250m": 250e6, "1b": 1e9, "7b": 7e9}


def read(name: str) -> Recipe:
    return load_recipe(name)


def published(name: str) -> Recipe:
    """Build the recipe from the table, without reading the shipped file; what no table gives is the recipe's own."""
    hidden, intermediate, heads, layers, steps, stop_step, rate, alpha = TABLE_9[name]
    shipped = read(name)
    return Recipe(
        model=ModelConfig(
            placement=f"mix(alpha={alpha})",
            hidden_size=hidden,
            intermediate_size=intermediate,
            num_attention_heads=heads,
            num_hidden_layers=layers,
            num_key_value_heads=None,
            rms_norm_eps=1e-6,
            rope_theta=10_000.0,
            tie_word_embeddings=False,
        ),
        data=DataConfig(corpus="c4", tokenizer="t5-base", sequence_length=256, max_tokens=shipped.data.max_tokens),
        optimizer=OptimizerConfig(
            name="adam",
            learning_rate=rate,
            warmup_steps=None,
            final_learning_rate_fraction=0.1,
            beta1=0.9,
            beta2=0.999,
            epsilon=1e-8,
            weight_decay=0.0,
            max_grad_norm=0.0,
        ),
        steps=steps,
        stop_step=stop_step,
        batch_size=512,
        micro_batch_size=shipped.micro_batch_size,
        evaluate_every=shipped.evaluate_every,
        execution=shipped.execution,
    )


@pytest.mark.parametrize("name", TABLE_9)
def test_every_field_is_the_tables(name: str) -> None:
    assert read(name) == published(name)


@pytest.mark.parametrize("name", TABLE_9)
def test_steps_warmup_and_data_are_the_published_ones(name: str) -> None:
    recipe = read(name)
    assert recipe.tokens_per_step == 131_072
    assert recipe.warmup_steps == recipe.steps // 10
    assert recipe.micro_batch_size is not None
    assert recipe.batch_size % recipe.micro_batch_size == 0
    tokens = recipe.last_step * recipe.tokens_per_step
    assert recipe.data.max_tokens is not None
    assert tokens <= recipe.data.max_tokens <= 1.1 * tokens  # no document is seen twice, and little is left over


@pytest.mark.parametrize("name", TABLE_9)
def test_parameters_are_exactly_those_of_stock_llama(name: str) -> None:
    hidden, intermediate, _, layers, *_ = TABLE_9[name]
    count = count_parameters(read(name))
    block = 4 * hidden**2 + 3 * hidden * intermediate + 2 * hidden
    assert count.embedding == count.head == 32_000 * hidden
    assert count.blocks == (block,) * layers
    assert count.other == hidden
    assert count.total == EXACT[name] == 2 * 32_000 * hidden + layers * block + hidden


@pytest.mark.parametrize(
    ("name", "tolerance"), [("71m", 0.01), ("130m", 0.04), ("250m", 0.02), ("1b", 0.35), ("7b", 0.04)]
)
def test_parameters_are_of_the_published_size(name: str, tolerance: float) -> None:
    """The paper's "1B" is LLaMA's 1.3B (GaLore's llama_1b.json); the other names are within 4 %."""
    assert EXACT[name] == pytest.approx(SIZE_CLASSES[name], rel=tolerance)


def test_250m_with_the_hidden_size_that_the_paper_prints_would_be_355m() -> None:
    recipe = read("250m")
    wider = replace(recipe, model=replace(recipe.model, hidden_size=1024))
    assert count_parameters(wider).total == pytest.approx(355e6, rel=0.01)
    assert ModelShape.of(recipe).hidden == 768


# architecture, hidden, intermediate, heads, key-value heads, layers, tied, vocabulary, tokens trained on, parameters of
# the published models
OTHER_ARCHITECTURES = {
    "qwen2.5-0.5b": ("qwen2", 896, 4864, 14, 2, 24, True, 151_936, 6e9, 494_032_768),
    "olmo-1b": ("olmo", 2048, 8192, 16, 16, 16, True, 50_304, 20e9, 1_176_764_416),
    "olmo-7b": ("olmo", 4096, 11008, 32, 32, 32, False, 50_304, 20e9, 6_888_095_744),
}


@pytest.mark.parametrize("name", OTHER_ARCHITECTURES)
def test_other_architectures_have_the_parameters_of_the_published_models(name: str) -> None:
    architecture, hidden, intermediate, heads, key_value_heads, layers, tied, vocabulary, tokens, total = (
        OTHER_ARCHITECTURES[name]
    )
    recipe = check_model(read(name))
    model = recipe.model
    assert (model.architecture, model.hidden_size, model.intermediate_size) == (architecture, hidden, intermediate)
    assert (model.num_attention_heads, model.num_hidden_layers, model.tie_word_embeddings) == (heads, layers, tied)
    assert (model.num_key_value_heads or heads) == key_value_heads
    count = count_parameters(recipe)
    width = hidden // heads * key_value_heads
    block = 2 * hidden**2 + 2 * hidden * width + 3 * hidden * intermediate
    if architecture == "qwen2":
        block += hidden + 2 * width + 2 * hidden  # biases of q, k, v; the gains of two norms
    assert count.blocks == (block,) * layers
    assert count.embedding == vocabulary * hidden
    assert count.head == (0 if tied else vocabulary * hidden)
    assert count.total == total
    assert recipe.steps * recipe.tokens_per_step == pytest.approx(tokens, rel=1e-3)
    assert recipe.data.max_tokens is not None
    assert tokens <= recipe.data.max_tokens <= 1.1 * tokens
