from __future__ import annotations

import math

import pytest
import torch
from measure_reference import Batch, build_llama, cut, evaluation_loss, reference_loss
from transformers import LlamaForCausalLM

from mixln.errors import InputError
from mixln.measure import EvaluationLoss
from mixln.measure.performance import row_cross_entropies


def test_is_the_mean_over_all_predicted_tokens(llama: LlamaForCausalLM, rows: Batch) -> None:
    loss = evaluation_loss(llama, cut(rows, 3))
    assert loss.num_tokens == int((rows.targets != -100).sum())
    assert loss.mean == pytest.approx(reference_loss(llama, rows), abs=1e-10)
    assert loss.perplexity == pytest.approx(math.exp(loss.mean))
    assert llama.training


def test_depends_neither_on_batch_size_nor_on_order(rows: Batch) -> None:
    model = build_llama()
    whole = evaluation_loss(model, [rows])
    for size in (1, 3, 5):
        part = evaluation_loss(model, reversed(cut(rows, size)))
        assert part.num_tokens == whole.num_tokens
        assert part.mean == pytest.approx(whole.mean, abs=1e-9)


def test_attention_stays_inside_documents(rows: Batch) -> None:
    """Another first document leaves the losses of the second as they are; with running positions it does not."""
    model = build_llama()
    border = 5
    input_ids = rows.input_ids[:1].clone()
    targets = rows.targets[:1].clone()
    input_ids[:, :border] = (input_ids[:, :border] + 9) % 60
    targets[:, :border] = -100
    second_alone = Batch(rows.input_ids[:1], targets, rows.position_ids[:1])
    changed = Batch(input_ids, targets, rows.position_ids[:1])
    assert evaluation_loss(model, [second_alone]) == evaluation_loss(model, [changed])
    running = torch.arange(20)[None]
    joined = [evaluation_loss(model, [Batch(ids, targets, running)]) for ids in (rows.input_ids[:1], input_ids)]
    assert joined[0] != joined[1]


def test_logits_in_half_precision_are_summed_in_full(rows: Batch) -> None:
    logits = torch.randn(1, 4000, 8, generator=torch.Generator().manual_seed(0)).to(torch.bfloat16)
    targets = torch.zeros(1, 4000, dtype=torch.int64)
    exact = -logits.double().log_softmax(-1)[..., 0].sum()
    assert row_cross_entropies(logits, targets).sum().item() == pytest.approx(exact.item(), rel=1e-6)
    model = build_llama(dtype=torch.float32)
    full, half = evaluation_loss(model, [rows]), evaluation_loss(model, [rows], autocast_dtype=torch.bfloat16)
    assert half.mean != full.mean
    assert half.mean == pytest.approx(full.mean, rel=0.05)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert evaluation_loss(model, [rows]) == full


def test_perplexity_too_large_for_a_float_is_infinite() -> None:
    assert EvaluationLoss(800.0, 1).perplexity == math.inf
    assert EvaluationLoss(math.inf, 1).perplexity == math.inf
    assert math.isnan(EvaluationLoss(math.nan, 1).perplexity)


def test_nothing_to_predict_is_an_error(rows: Batch) -> None:
    model = build_llama()
    unpredicted = Batch(rows.input_ids, torch.full_like(rows.targets, -100), rows.position_ids)
    for batches in ([], [unpredicted]):
        with pytest.raises(InputError, match="at least one batch"):
            evaluation_loss(model, batches)
