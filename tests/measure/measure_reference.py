"""A small model, packed rows, and the measures by their definitions, token by token."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM

from mixln.measure import EvaluationLoss, LanguageModelLoss, Measure, PerformanceDrop, observe, removals
from mixln.measure.forward import TokenBatch
from mixln.modes import evaluation_mode

VOCABULARY = 61
ROWS, LENGTH = 8, 20


@dataclass(frozen=True)
class Batch:
    input_ids: torch.Tensor
    targets: torch.Tensor
    position_ids: torch.Tensor


def make_rows() -> Batch:
    """Eight rows, each of two documents and some padding; -100 at the end of documents and on padding."""
    generator = torch.Generator().manual_seed(7)
    input_ids = torch.randint(1, VOCABULARY, (ROWS, LENGTH), generator=generator)
    targets = torch.full_like(input_ids, -100)
    position_ids = torch.zeros_like(input_ids)
    for row in range(ROWS):
        border, end = 5 + row, LENGTH - row % 4
        for start, stop in ((0, border), (border, end)):
            targets[row, start : stop - 1] = input_ids[row, start + 1 : stop]
        input_ids[row, end:] = 0
        position_ids[row] = torch.arange(LENGTH)
        position_ids[row, border:] -= border
    return Batch(input_ids, targets, position_ids)


def cut(rows: Batch, size: int) -> list[Batch]:
    columns = (rows.input_ids.split(size), rows.targets.split(size), rows.position_ids.split(size))
    return [Batch(*parts) for parts in zip(*columns, strict=True)]


def build_llama(
    *, layers: int = 4, dtype: torch.dtype = torch.float64, key_value_heads: int = 4, tied: bool = False
) -> LlamaForCausalLM:
    """A random Llama; weights larger than usual, so that the layers do something, and dropout that must be off."""
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=layers,
        num_attention_heads=4,
        num_key_value_heads=key_value_heads,
        max_position_embeddings=64,
        tie_word_embeddings=tied,
        initializer_range=0.15,
        attention_dropout=0.5,
    )
    with torch.random.fork_rng():
        torch.manual_seed(3)
        model = LlamaForCausalLM(config)
    for parameter in model.parameters():
        parameter.data = parameter.data.to(dtype)
    with torch.no_grad():
        model.model.norm.weight.uniform_(0.5, 1.5, generator=torch.Generator().manual_seed(5))
    return model.train()


def reference_states(model: LlamaForCausalLM, rows: Batch) -> list[list[torch.Tensor]]:
    """x_1 .. x_{L+1} of each counted token, without hooks: the final norm is taken out of the model for a moment."""
    norm = model.model.norm
    model.model.add_module("norm", torch.nn.Identity())
    try:
        with evaluation_mode(model), torch.no_grad():
            states = model(
                input_ids=rows.input_ids, position_ids=rows.position_ids, output_hidden_states=True, use_cache=False
            ).hidden_states
    finally:
        model.model.add_module("norm", norm)
    return [[state[i, t] for state in states] for i, t in (rows.targets != -100).nonzero().tolist()]


def reference_loss(model: LlamaForCausalLM, rows: Batch) -> float:
    """Mean cross-entropy by its definition, one token at a time."""
    with evaluation_mode(model), torch.no_grad():
        logits = model(input_ids=rows.input_ids, position_ids=rows.position_ids, use_cache=False).logits
    losses = [
        -logits[i, t].log_softmax(-1)[rows.targets[i, t]].item() for i, t in (rows.targets != -100).nonzero().tolist()
    ]
    return sum(losses) / len(losses)


Observed = TypeVar("Observed", bound=Measure)


def seen(
    measure: Observed, model: nn.Module, batches: Iterable[TokenBatch], autocast_dtype: torch.dtype | None = None
) -> Observed:
    """A measure that has seen batches."""
    observe(model, batches, [measure], autocast_dtype=autocast_dtype)
    return measure


def removal_drops(
    model: nn.Module, batches: Iterable[TokenBatch], autocast_dtype: torch.dtype | None = None
) -> PerformanceDrop:
    """What the loss becomes without each layer."""
    return seen(PerformanceDrop(removals(), LanguageModelLoss()), model, batches, autocast_dtype)


def evaluation_loss(
    model: nn.Module, batches: Iterable[TokenBatch], *, autocast_dtype: torch.dtype | None = None
) -> EvaluationLoss:
    """The loss of the whole model, as a measure of what removals cost knows it."""
    batches = list(batches)
    tokens = sum(int((batch.targets != -100).sum()) for batch in batches)
    return EvaluationLoss(removal_drops(model, batches, autocast_dtype).whole().value.item() * tokens, tokens)
