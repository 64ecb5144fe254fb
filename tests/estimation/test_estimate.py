from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch
from transformers import AutoModelForCausalLM

from mixln.data import DataConfig
from mixln.errors import InputError
from mixln.estimation import (
    DEVICES,
    Estimate,
    ModelShape,
    ShardingPlan,
    count_operations,
    count_parameters,
    estimate,
    find_device,
    memory_use,
)
from mixln.estimation.memory import MicroBatch
from mixln.estimation.shape import recipe_config
from mixln.tasks import ModelConfig, Recipe
from mixln.tasks.objective import AttentionKind, CausalLanguageModelObjective
from mixln.training import ExecutionConfig
from mixln.training.compilation import can_compile, compile_objective

H100 = find_device("h100")


def recipe_71m(**changes: object) -> Recipe:
    model = ModelConfig(hidden_size=512, intermediate_size=1368, num_hidden_layers=12, num_attention_heads=8)
    recipe = Recipe(
        model=model,
        data=DataConfig(vocab_size=32_000),
        steps=10_000,
        batch_size=512,
        micro_batch_size=64,
        precision="bfloat16",
    )
    return replace(recipe, **changes)  # pyright: ignore[reportArgumentType]


def with_execution(recipe: Recipe, **changes: object) -> Recipe:
    return replace(recipe, execution=replace(recipe.execution, **changes))  # pyright: ignore[reportArgumentType]


def wide(**model: object) -> Recipe:
    """7B, which no device holds alone."""
    sizes = ModelConfig(hidden_size=4096, intermediate_size=11008, num_hidden_layers=32, num_attention_heads=32)
    return recipe_71m(model=replace(sizes, **model), micro_batch_size=4)  # pyright: ignore[reportArgumentType]


def plan_of(result: Estimate, label: str) -> float:
    return next(plan.memory.total for plan in result.plans if plan.label == label)


def test_parameters_add_up_and_tied_ones_count_once() -> None:
    count = count_parameters(recipe_71m())
    assert count.total == count.embedding + count.head + count.in_blocks + count.other
    assert count.multiplied == count.total - 32_000 * 512
    recipe = recipe_71m()
    tied = count_parameters(replace(recipe, model=replace(recipe.model, tie_word_embeddings=True)))
    assert (tied.head, tied.total) == (0, count.total - count.head)
    assert tied.multiplied == tied.total


def test_norms_of_the_placement_are_counted() -> None:
    recipe = recipe_71m()
    sandwich = count_parameters(replace(recipe, model=replace(recipe.model, placement="sandwich")))
    assert sandwich.total == count_parameters(recipe).total + 12 * 2 * 512
    mixed = count_parameters(replace(recipe, model=replace(recipe.model, placement="mix")))
    assert mixed.total == count_parameters(recipe).total


def test_operations_are_those_of_the_formula() -> None:
    recipe = recipe_71m()
    shape, count = ModelShape.of(recipe), count_parameters(recipe)
    plain = count_operations(shape, count, explicit_attention=False, activation_checkpointing=False)
    assert plain.matrices == 6 * (70_578_688 - 32_000 * 512)
    assert plain.attention == 12 * 12 * 512 * 256 / 2
    assert plain.executed == plain.model == plain.matrices + plain.attention
    again = count_operations(shape, count, explicit_attention=True, activation_checkpointing=True)
    assert again.model == plain.model
    assert again.masked_attention == plain.attention
    assert again.recomputation == 2 * count.in_blocks + 4 * 12 * 512 * 256
    assert again.executed == plain.executed + again.masked_attention + again.recomputation


def test_matrix_operations_are_those_that_pytorch_counts() -> None:
    from torch.utils.flop_counter import FlopCounterMode

    recipe = replace(Recipe(), model=replace(Recipe().model, num_hidden_layers=2), data=DataConfig(vocab_size=500))
    shape = ModelShape.of(recipe)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(recipe_config(recipe), attn_implementation="eager")
        tokens = torch.zeros(1, shape.sequence, dtype=torch.int64)
    with FlopCounterMode(display=False) as counter:
        model(input_ids=tokens).logits.sum().backward()
    count = count_parameters(recipe)
    found = count_operations(shape, count, explicit_attention=True, activation_checkpointing=False)
    norms = 6 * (count.other + 2 * 2 * shape.hidden)  # not counted by PyTorch
    # the frozen input of the first block needs a gradient too: the embedding's
    assert counter.get_total_flops() == pytest.approx(shape.sequence * (found.executed - norms), rel=0.001)


@pytest.mark.slow
@pytest.mark.skipif(not can_compile(torch.device("cpu")), reason="needs a C++ compiler")
@pytest.mark.parametrize(
    ("placement", "attention"), [("pre", "eager"), ("post", "eager"), ("sandwich", "sdpa"), ("mix(alpha=0.5)", "eager")]
)
def test_activations_are_what_compiled_blocks_save(placement: str, attention: AttentionKind) -> None:
    """Of all saved tensors that have a token dimension, in bytes for each token."""
    recipe = replace(
        Recipe(),
        model=ModelConfig(placement=placement, hidden_size=128, intermediate_size=352, num_hidden_layers=4),
        data=DataConfig(vocab_size=1000, sequence_length=64),
    )
    model = AutoModelForCausalLM.from_config(recipe_config(recipe))
    objective = CausalLanguageModelObjective(model, attention)
    compile_objective(objective)
    rows, shape = 3, ModelShape.of(recipe)
    tokens = torch.randint(1000, (rows, 64))
    positions = torch.arange(64)[None].expand(rows, 64)
    saved: dict[int, int] = {}

    def note(tensor: torch.Tensor) -> torch.Tensor:
        if set(tensor.shape) & {rows, rows * 4, rows * 64}:
            saved[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with (
        torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor),
        torch.autocast("cpu", torch.bfloat16),
    ):
        objective(tokens, positions, tokens).backward()
    use = memory_use(
        shape,
        count_parameters(recipe),
        ShardingPlan("ddp", 1),
        MicroBatch(rows, 1),
        low=2,
        explicit_attention=attention == "eager",
    )
    assert use.activations == pytest.approx(sum(saved.values()), rel=0.1)


def test_memory_of_one_device_is_weights_gradients_moments_and_the_rest() -> None:
    recipe = recipe_71m()
    use = estimate(recipe, "h100").chosen.memory
    parameters = 70_578_688
    assert (use.weights, use.gradients, use.optimizer) == (4 * parameters, 4 * parameters, 8 * parameters)
    assert use.total == pytest.approx(
        use.weights + use.gradients + use.optimizer + use.copies + use.activations + use.loss_head + use.backward_extra
    )
    logits = 64 * 256 * 32_000 * 2
    assert use.loss_head < logits  # never whole


def test_a_single_micro_batch_holds_no_gradients_beside_its_activations() -> None:
    use = estimate(recipe_71m(batch_size=64), "h100").chosen.memory
    assert use.gradients == 0
    tiny = estimate(recipe_71m(batch_size=1, micro_batch_size=1), "h100").chosen.memory
    assert tiny.backward_extra > 0  # then the end of the backward is the peak
    assert tiny.total >= 16 * 70_578_688


def test_activations_grow_with_rows_and_shrink_with_checkpointing() -> None:
    def activations(**changes: object) -> float:
        return estimate(recipe_71m(**changes), "h100").chosen.memory.activations

    assert activations(micro_batch_size=64) == pytest.approx(4 * activations(micro_batch_size=16))
    assert activations(execution=ExecutionConfig(activation_checkpointing=True)) < 0.3 * activations()


def test_fsdp_divides_weights_and_moments_and_tensor_parallelism_the_blocks() -> None:
    recipe = wide()
    whole = estimate(recipe, "h100", 8)
    shared = estimate(with_execution(recipe, strategy="fsdp"), "h100", 8)
    assert shared.chosen.memory.weights == whole.chosen.memory.weights / 8
    assert shared.chosen.memory.optimizer == whole.chosen.memory.optimizer / 8
    assert not whole.chosen.fits
    assert shared.chosen.fits
    split = estimate(with_execution(recipe, strategy="fsdp", tensor_parallel_size=8), "h100", 8)
    assert split.chosen.label == "fsdp + tensor parallel 8"
    assert split.chosen.rows == 4
    assert split.chosen.micro_batches == 128
    ends = 2 * 32_000 * 4096 + 4096
    assert split.chosen.memory.weights == 4 * (ends + (whole.parameters.total - ends) / 8)
    assert split.chosen.memory.activations < 0.5 * shared.chosen.memory.activations


def test_what_does_not_fit_comes_with_what_would() -> None:
    result = estimate(wide(), "h100", 8)
    assert not result.chosen.fits
    assert "set execution.strategy: fsdp" in result.advice
    rows = estimate(recipe_71m(micro_batch_size=512), "rtx4090")
    assert not rows.chosen.fits
    assert any("micro_batch_size: 256" in line for line in rows.advice)
    assert any("activation_checkpointing" in line for line in rows.advice)
    assert estimate(recipe_71m(micro_batch_size=256), "rtx4090").chosen.fits
    alone = estimate(wide(), "rtx4090")
    assert any("devices with execution.strategy: fsdp" in line for line in alone.advice)
    assert estimate(recipe_71m(), "h100").advice == ()


@pytest.mark.parametrize("count", [1, 2, 8])
def test_advice_is_true(count: int) -> None:
    """Doing what it says makes it fit."""
    recipe = wide()
    result = estimate(recipe, "a100", count)
    numbers = [int(line.split()[1]) for line in result.advice if line.startswith("use ")]
    assert numbers
    for devices in numbers:
        assert estimate(with_execution(recipe, strategy="fsdp"), "a100", devices).chosen.fits


def test_time_follows_operations_utilization_and_price() -> None:
    half, full = (estimate(recipe_71m(), "h100", 8, utilization=u, price=2.5) for u in (0.25, 0.5))
    assert half.time.step_seconds == pytest.approx(2 * full.time.step_seconds)
    time = full.time
    assert time.step_seconds == pytest.approx((time.matrix_seconds + time.traffic_seconds) / 0.5)
    assert time.hours == pytest.approx(10_000 * time.step_seconds / 3600)
    assert time.cost == pytest.approx(2.5 * 8 * time.hours)
    assert time.tokens_per_second == pytest.approx(131_072 / time.step_seconds)
    assert 0 < time.model_flops_utilization < 0.5
    assert estimate(recipe_71m(), "h100").time.cost is None
    stopped = estimate(recipe_71m(stop_step=1000), "h100", 8)
    assert stopped.time.hours == pytest.approx(estimate(recipe_71m(), "h100", 8).time.hours / 10)


def test_slow_links_bind_where_weights_are_gathered_for_few_tokens() -> None:
    recipe = with_execution(wide(), strategy="fsdp")
    slow = estimate(recipe, replace(H100, interconnect=1.0), 8).time
    assert slow.step_seconds == pytest.approx(slow.communication_seconds)
    assert slow.step_seconds > 10 * estimate(recipe, "h100", 8).time.step_seconds


# tokens per second and device, sequences of 2,048, bfloat16, no activation checkpointing, FSDP on 8 devices:
# github.com/mosaicml/llm-foundry, scripts/train/benchmarking/README.md (commit 061f2c7)
FOUNDRY = {
    # device, hidden, layers, heads, batch, micro-batch, measured
    "a100 125m": ("a100", 768, 12, 12, 640, 40, 142_830),
    "a100 350m": ("a100", 1024, 24, 16, 512, 32, 58_782),
    "a100 760m": ("a100", 1536, 24, 12, 384, 24, 32_434),
    "a100 1b": ("a100", 2048, 24, 16, 448, 14, 20_513),
    "a100 3b": ("a100", 2560, 32, 20, 160, 10, 10_811),
    "a100 7b": ("a100", 4096, 32, 32, 96, 6, 4_641),
    "h100 760m": ("h100", 1536, 24, 12, 384, 24, 63_147),
    "h100 1b": ("h100", 2048, 24, 16, 112, 14, 45_455),
    "h100 3b": ("h100", 2560, 32, 20, 480, 10, 24_142),
    "h100 7b": ("h100", 4096, 32, 32, 48, 6, 10_643),
}


@pytest.mark.parametrize("case", FOUNDRY)
def test_published_throughputs_are_met_within_30_percent(case: str) -> None:
    """MPT blocks of equal width; a Llama block of intermediate size 8 d / 3 has as many parameters."""
    device, hidden, layers, heads, batch, rows, measured = FOUNDRY[case]
    sizes = ModelConfig(
        hidden_size=hidden,
        intermediate_size=hidden * 8 // 3 // 8 * 8,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        tie_word_embeddings=True,
    )
    data = DataConfig(vocab_size=50_368, sequence_length=2048)
    recipe = recipe_71m(model=sizes, data=data, batch_size=batch, micro_batch_size=rows)
    result = estimate(with_execution(recipe, strategy="fsdp"), device, 8)
    assert result.time.tokens_per_second / 8 == pytest.approx(measured, rel=0.3)


def test_float32_is_slower_and_larger() -> None:
    low, exact = (estimate(recipe_71m(precision=name), "h100") for name in ("bfloat16", "float32"))
    assert exact.time.step_seconds > 2 * low.time.step_seconds
    assert exact.chosen.memory.activations > low.chosen.memory.activations
    assert exact.chosen.memory.copies == 0


def test_the_processor_is_measured() -> None:
    recipe = replace(Recipe(), model=replace(Recipe().model, num_hidden_layers=2), data=DataConfig(vocab_size=500))
    result = estimate(recipe, "cpu")
    assert result.device.bfloat16_tflops > 0.001
    assert result.device.bandwidth > 0.1
    assert result.operations.masked_attention > 0  # explicit softmax
    assert result.time.step_seconds > 0


def test_every_device_is_plausible_and_json_has_everything() -> None:
    for name, device in DEVICES.items():
        assert name == device.name
        assert device.bfloat16_tflops > device.float32_tflops
        result = json.loads(json.dumps(estimate(recipe_71m(), name, 2).to_dict()))
        assert result["plans"][0]["memory"]["total"] > 0
        assert result["assumptions"]


@pytest.mark.parametrize(
    ("count", "options", "execution", "message"),
    [
        (0, {}, {}, "`count` must be at least 1"),
        (3, {}, {}, r"batch_size \(512\) is not a multiple of the 3 shares"),
        (4, {"utilization": 0.0}, {}, "`utilization` must be above 0"),
        (4, {"utilization": 1.5}, {}, "`utilization` must be above 0"),
        (4, {"price": -1.0}, {}, "`price` must be a number of at least 0"),
        (2, {}, {"tensor_parallel_size": 4, "strategy": "fsdp"}, r"`count` \(2\) is not a multiple of execution"),
        (4, {}, {"tensor_parallel_size": 4}, "goes with execution.strategy fsdp"),
        (16, {}, {"tensor_parallel_size": 16, "strategy": "fsdp"}, "does not divide model.num_attention_heads"),
    ],
)
def test_bad_input_is_refused(
    count: int, options: dict[str, float], execution: dict[str, object], message: str
) -> None:
    with pytest.raises(InputError, match=message):
        estimate(with_execution(recipe_71m(), **execution), "h100", count, **options)


def test_an_unknown_device_is_named_with_its_nearest() -> None:
    with pytest.raises(InputError, match="Did you mean 'h100'"):
        estimate(recipe_71m(), "h10")
