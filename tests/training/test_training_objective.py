from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from measure_reference import evaluation_loss
from torch.nn import functional as F
from torch.nn.attention.flex_attention import BlockMask
from transformers import LlamaConfig, LlamaForCausalLM

from mixln.data import PackedDataset, PreparedData, evaluation_batches, training_batch
from mixln.measure import EvaluationLoss
from mixln.tasks import Pretraining, Recipe, build_model
from mixln.tasks import linear_cross_entropy as linear_cross_entropy_module
from mixln.tasks.linear_cross_entropy import linear_cross_entropy
from mixln.tasks.objective import AttentionKind, CausalLanguageModelObjective, choose_attention, document_mask
from mixln.tasks.validation import validate
from mixln.training import learning_rate
from mixln.training.decisions import Settings
from mixln.training.distributed import Processes
from mixln.training.objective import WHOLE, Share
from mixln.training.optimizer import build_optimizer
from mixln.training.precision import Precision
from mixln.training.run import TrainingRun

CPU = torch.device("cpu")
FLOAT32 = Precision("float32", "as the recipe says", "float32")
KINDS: list[AttentionKind] = ["sdpa", "eager"]


@pytest.mark.parametrize("has_bias", [False, True])
@pytest.mark.parametrize("chunk_logits", [2**25, 50 * 7, 50])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_the_chunked_loss_is_cross_entropy_of_the_logits(
    dtype: torch.dtype, chunk_logits: int, has_bias: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(linear_cross_entropy_module, "CHUNK_LOGITS", chunk_logits)
    generator = torch.Generator().manual_seed(0)
    hidden_states = torch.randn(23, 16, generator=generator, dtype=dtype).requires_grad_()
    weight = torch.randn(50, 16, generator=generator, dtype=dtype).requires_grad_()
    targets = torch.randint(50, (23,), generator=generator)
    targets[[3, 11]] = -100
    bias = torch.randn(50, generator=generator, dtype=dtype).requires_grad_() if has_bias else None
    learned = [tensor for tensor in (hidden_states, weight, bias) if tensor is not None]
    loss = linear_cross_entropy(hidden_states, weight, targets, bias=bias)
    gradients = torch.autograd.grad(loss * 0.3, learned)
    expected = F.cross_entropy(F.linear(hidden_states, weight, bias), targets, reduction="sum", ignore_index=-100)
    torch.testing.assert_close(loss, expected)
    for one, other in zip(gradients, torch.autograd.grad(expected * 0.3, learned), strict=True):
        torch.testing.assert_close(one, other)
    with torch.no_grad():
        torch.testing.assert_close(linear_cross_entropy(hidden_states, weight, targets, bias=bias), expected)


def test_the_chunked_loss_multiplies_in_the_autocast_dtype_and_sums_in_float32() -> None:
    generator = torch.Generator().manual_seed(0)
    hidden_states = torch.randn(64, 32, generator=generator).requires_grad_()
    weight = torch.randn(100, 32, generator=generator).requires_grad_()
    targets = torch.randint(100, (64,), generator=generator)
    bias = torch.randn(100, generator=generator).requires_grad_()
    with torch.autocast("cpu", torch.bfloat16):
        loss = linear_cross_entropy(hidden_states, weight, targets, bias=bias)
        logits = F.linear(hidden_states, weight, bias)
    assert logits.dtype == torch.bfloat16
    torch.testing.assert_close(loss, F.cross_entropy(logits.float(), targets, reduction="sum"))
    loss.backward()
    for parameter in (weight, bias):
        assert parameter.grad is not None
        assert parameter.grad.dtype == torch.float32


@pytest.mark.parametrize("attention", KINDS)
def test_nothing_leaks_across_the_border_of_a_document(
    recipe: Recipe, data: PreparedData, attention: AttentionKind
) -> None:
    """Other tokens in the first document of a row leave the losses of the second exactly as they are."""
    objective = CausalLanguageModelObjective(build_model(recipe, data.tokenizer), attention)
    generator = torch.Generator().manual_seed(0)
    input_ids = torch.randint(300, (1, 64), generator=generator)
    targets = torch.randint(300, (1, 64), generator=generator)
    position_ids = torch.cat([torch.arange(40), torch.arange(24)])[None]
    second = torch.where(torch.arange(64) >= 40, targets, -100)
    changed = input_ids.clone()
    changed[0, :40] = torch.randint(300, (40,), generator=generator)
    with torch.no_grad():
        before, after = (objective(tokens, position_ids, second) for tokens in (input_ids, changed))
        assert torch.equal(before, after)
        # and within a document there is attention
        assert not torch.equal(
            objective(input_ids, torch.arange(64)[None], second), objective(changed, torch.arange(64)[None], second)
        )
        # the second document alone gives the same
        alone = objective(input_ids[:, 40:], position_ids[:, 40:], targets[:, 40:])
    torch.testing.assert_close(before, alone)


@pytest.mark.parametrize("placement", ["pre", "none"])
@pytest.mark.parametrize("attention", KINDS)
def test_the_objective_is_the_summed_loss_of_the_model(
    recipe: Recipe, data: PreparedData, attention: AttentionKind, placement: str
) -> None:
    """With the head's bias where the placement has one."""
    recipe = replace(recipe, model=replace(recipe.model, placement=placement))
    model = build_model(recipe, data.tokenizer)
    for name, parameter in model.named_parameters():
        if name == "lm_head.bias":
            torch.nn.init.normal_(parameter)
    batch = training_batch(data.train, 0, 4, 0)
    logits = model(input_ids=batch.input_ids, position_ids=batch.position_ids, use_cache=False).logits
    expected = F.cross_entropy(logits.flatten(0, 1), batch.targets.flatten(), reduction="sum")
    torch.testing.assert_close(CausalLanguageModelObjective(model, attention).batch_loss(batch), expected)


def test_all_masks_say_the_same() -> None:
    position_ids = torch.tensor([[0, 1, 2, 0, 1, 0], [0, 1, 2, 3, 4, 5]])
    allowed = document_mask(position_ids, "sdpa", torch.float32)
    assert isinstance(allowed, torch.Tensor)
    assert allowed.shape == (2, 1, 6, 6)
    expected = torch.zeros(2, 6, 6, dtype=torch.bool)
    for row, starts in enumerate([[0, 0, 0, 3, 3, 5], [0] * 6]):
        for query in range(6):
            expected[row, query, starts[query] : query + 1] = True
    assert torch.equal(allowed[:, 0], expected)
    added = document_mask(position_ids, "eager", torch.float32)
    assert isinstance(added, torch.Tensor)
    assert torch.equal(added == 0, allowed)
    block_mask = document_mask(position_ids, "flex_attention", torch.float32)
    assert isinstance(block_mask, BlockMask)
    for row in range(2):
        for query in range(6):
            for key in range(6):
                said = block_mask.mask_mod(*(torch.tensor(i) for i in (row, 0, query, key)))
                assert bool(said) == bool(expected[row, query, key])


def test_attention_is_chosen_by_device_and_length() -> None:
    assert choose_attention(CPU, 256, compiled=True) == "eager"
    assert choose_attention(CPU, 2048, compiled=True) == "sdpa"
    assert choose_attention(CPU, 256, compiled=False) == "sdpa"
    assert choose_attention(torch.device("cuda"), 256, compiled=True) == "flex_attention"


def validated(
    objective: CausalLanguageModelObjective, rows: PackedDataset, recipe: Recipe, share: Share = WHOLE
) -> EvaluationLoss:
    """Return the validation loss of a share, added up over no other."""
    with torch.no_grad():
        return validate(objective, rows, CPU, recipe.evaluation_batch_size, share)


def test_validation_is_the_loss_of_the_saved_model(recipe: Recipe, data: PreparedData) -> None:
    model = build_model(recipe, data.tokenizer)
    objective = CausalLanguageModelObjective(model, "eager")
    found = validated(objective, data.validation, recipe)
    expected = evaluation_loss(model, evaluation_batches(data.validation, 3))
    assert found.num_tokens == expected.num_tokens
    assert found.mean == pytest.approx(expected.mean, rel=1e-6)
    assert objective.attention == "eager"


def test_validation_is_divided_without_counting_twice(recipe: Recipe, data: PreparedData) -> None:
    model = build_model(recipe, data.tokenizer)
    objective = CausalLanguageModelObjective(model)
    whole = validated(objective, data.validation, recipe)

    parts = [validated(objective, data.validation, recipe, Share(rank, 3)) for rank in range(3)]
    assert sum(part.num_tokens for part in parts) == whole.num_tokens
    assert sum(part.total_loss for part in parts) == pytest.approx(whole.total_loss, rel=1e-6)


def stock_llama(run: TrainingRun) -> LlamaForCausalLM:
    """Return transformers' own model with the weights of a run's."""
    config = run.model.config.to_dict()
    for name in ("model_type", "placement", "embedding_std", "placement_depths", "placement_num_layers"):
        config.pop(name, None)
    stock = LlamaForCausalLM._from_config(LlamaConfig(**config), attn_implementation="sdpa")
    stock.load_state_dict(run.model.state_dict())
    return stock


def training_run(recipe: Recipe, data: PreparedData, folder: Path) -> TrainingRun:
    settings = Settings(compiled=False, threads=1, precision=FLOAT32)
    return TrainingRun(Pretraining(recipe, data), folder, Processes(CPU), settings)


def test_pre_trains_as_stock_llama_does(recipe: Recipe, data: PreparedData, tmp_path: Path) -> None:
    """50 steps of the same loop, once with this library's model and once with transformers' own."""
    recipe = replace(recipe, steps=50)
    placed, stock = (training_run(recipe, data, tmp_path) for _ in range(2))
    stock.objective = stock.module = CausalLanguageModelObjective(stock_llama(placed))
    stock.optimizer = build_optimizer(recipe.optimizer, stock.objective.model)
    losses: list[float] = []
    for step in range(50):
        batch = placed.batch(step)
        losses.append(float(placed.make_step(batch).loss))
        assert losses[-1] == pytest.approx(float(stock.make_step(batch).loss), abs=1e-5)
    assert losses[-1] < losses[0] - 0.5


def test_a_step_is_the_one_written_out_by_hand(recipe: Recipe, data: PreparedData, tmp_path: Path) -> None:
    """Plain PyTorch with stock Llama: materialised logits, Adam that is not fused, no micro-batches."""
    recipe = replace(recipe, steps=50, micro_batch_size=3)
    run = training_run(recipe, data, tmp_path)
    stock = stock_llama(run)
    optimizer = torch.optim.Adam(stock.parameters(), fused=False)
    for step in range(10):
        batch = training_batch(data.train, step, recipe.batch_size, recipe.seed)
        logits = stock(input_ids=batch.input_ids, position_ids=batch.position_ids, use_cache=False).logits
        loss = F.cross_entropy(logits.flatten(0, 1), batch.targets.flatten())
        loss.backward()
        torch.nn.utils.clip_grad_norm_(stock.parameters(), recipe.optimizer.max_grad_norm)
        optimizer.param_groups[0]["lr"] = learning_rate(recipe.optimizer, recipe.steps, step + 1)
        optimizer.step()
        optimizer.zero_grad()
        assert float(run.make_step(run.batch(step)).loss) == pytest.approx(float(loss), abs=1e-4)


def test_the_optimiser_leaves_out_a_step_that_the_device_refuses(recipe: Recipe, data: PreparedData) -> None:
    model = build_model(recipe, data.tokenizer)
    optimizer = build_optimizer(recipe.optimizer, model)
    before = {name: weight.clone() for name, weight in model.state_dict().items()}
    for parameter in model.parameters():
        parameter.grad = torch.full_like(parameter, torch.nan)
    optimizer.found_inf = torch.tensor(1.0)  # pyright: ignore[reportAttributeAccessIssue]
    optimizer.step()
    assert all(torch.equal(weight, before[name]) for name, weight in model.state_dict().items())
    assert all(float(state["step"]) == 0 for state in optimizer.state.values())
