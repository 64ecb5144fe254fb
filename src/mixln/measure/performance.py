"""What a change of the model costs, on a batch: the loss of a language model, or the turn of a pooled embedding."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Protocol

import torch
import torch.nn.functional as F

from mixln.errors import InputError
from mixln.measure.batches import ModelBatch
from mixln.measure.sums import at_least_float32, where_float64_is
from mixln.models.encoding import IGNORED_TARGET

RowSums = Callable[[Any], torch.Tensor]
"""From a model's output to (rows,) sums in float64 on the CPU; positive means harm."""


class Performance(Protocol):
    """How good a model's output is, compared with what the whole model gives.

    Attributes:
        name: what harm is measured in, for people.
        needs_head: whether it judges what the heads of a model give; else the model is run without them.
    """

    name: str
    needs_head: bool

    def on(self, output: Any, batch: ModelBatch) -> BatchPerformance:
        """Judge other outputs for a batch, given that of the whole model."""
        ...


@dataclass(frozen=True)
class BatchPerformance:
    """The performance on one batch.

    Attributes:
        whole: (rows,), what the whole model has.
        changed: the same of another output for the batch.
        counts: (rows,), the divisor of both.
    """

    whole: torch.Tensor
    changed: RowSums
    counts: torch.Tensor

    def harm(self, output: Any) -> torch.Tensor:
        """(rows,): what another output has, less what the whole model has; positive means harm.

        It is infinite where the other output's is not finite: such a model is useless.
        """
        harm = self.changed(output) - self.whole
        return torch.where(harm.isfinite(), harm, torch.inf)


@dataclass(frozen=True)
class EvaluationLoss:
    """Summed cross-entropy (nats) of `num_tokens` predicted tokens."""

    total_loss: float
    num_tokens: int

    @property
    def mean(self) -> float:
        """Nats per predicted token: total_loss / num_tokens."""
        return self.total_loss / self.num_tokens

    @property
    def perplexity(self) -> float:
        """exp(mean); infinite where that is no float."""
        try:
            return math.exp(self.mean)
        except OverflowError:
            return math.inf

    def __add__(self, other: EvaluationLoss) -> EvaluationLoss:
        return EvaluationLoss(self.total_loss + other.total_loss, self.num_tokens + other.num_tokens)


class LanguageModelLoss:
    """Total cross-entropy of the predicted tokens, in nats: P of Mix-LN (Li, Yin, Liu 2024), section 2."""

    name = "loss, nats per token"
    needs_head = True

    def on(self, output: Any, batch: ModelBatch) -> BatchPerformance:
        """Judge by `output.logits` (rows, tokens, vocabulary) and the batch's targets.

        Raises:
            InputError: the batch has no targets, or the output no logits, or the loss is not finite.
        """
        targets = batch.targets
        if targets is None or not hasattr(output, "logits"):
            raise InputError("the loss of a language model needs a model with a head, and targets")

        def losses(output: Any) -> torch.Tensor:
            return row_cross_entropies(output.logits, targets)

        counts = (targets != IGNORED_TARGET).sum(1)
        return BatchPerformance(_finite(losses(output), counts, "loss"), losses, counts)


class EmbeddingTurn:
    """1 - cos(pooled', pooled): how far a change turns the mean of the counted tokens' last hidden states.

    For models without a language-model head. The whole model itself is at 0, the worst at 2.
    """

    name = "1 - cosine of the pooled embedding"
    needs_head = False

    def on(self, output: Any, batch: ModelBatch) -> BatchPerformance:
        """Judge by `output.last_hidden_state`, (rows, tokens, hidden).

        Raises:
            InputError: the output has none that can be pooled, or they are not finite.
        """
        states = getattr(output, "last_hidden_state", None)
        if states is None:
            raise InputError(f"a {type(output).__name__} has no last_hidden_state to pool. Give a base model")
        if states.ndim != 3:
            raise InputError(
                f"the last_hidden_state of a {type(output).__name__} is of shape {tuple(states.shape)}, and not (rows, "
                "tokens, hidden): it cannot be pooled. Give another Performance"
            )
        whole = self._pooled(output, batch)
        _finite(whole.sum(-1), torch.ones(len(whole)), "pooled embedding")

        def turns(output: Any) -> torch.Tensor:
            return 1 - F.cosine_similarity(self._pooled(output, batch), whole, dim=-1)

        rows = len(whole)
        return BatchPerformance(torch.zeros(rows, dtype=torch.float64), turns, torch.ones(rows))

    @staticmethod
    def _pooled(output: Any, batch: ModelBatch) -> torch.Tensor:
        states = at_least_float32(output.last_hidden_state)
        counted = batch.counted_in(states)[..., None]
        return (torch.where(counted, states, 0.0).sum(1) / counted.sum(1).clamp_min(1)).cpu().double()


def _finite(values: torch.Tensor, counts: torch.Tensor, what: str) -> torch.Tensor:
    """The values, (rows,), if those that count are finite."""
    bad = ~values.isfinite() & (counts.cpu() > 0)
    if bad.any():
        raise InputError(
            f"the {what} of the whole model is infinite or not a number (NaN) in {int(bad.sum())} of {len(values)} "
            "rows, though its hidden states are finite: what comes after the blocks overflows. Load the "
            "model in float32 or bfloat16"
        )
    return values


def row_cross_entropies(logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """Sum over each row's predicted tokens of -log softmax(logits)[target], in nats: (rows,), float64 on the CPU.

    Softmax in float32 (float64 for float64 logits), the sums in float64; one row's probabilities are in memory at a
    time, on a CPU as many as its cache holds, which is three times as fast.

    Args:
        logits: (rows, tokens, vocabulary), any floating dtype.
        targets: (rows, tokens), already shifted, -100 where nothing is predicted.

    Gradients flow through it.
    """
    sums = [losses.sum(dtype=torch.float64) for losses in _losses_by_row(logits, targets)]
    return torch.stack(sums).cpu()


def token_cross_entropies(logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """-log softmax(logits)[target] of every token, in nats, 0 where nothing is predicted: (rows, tokens), on the CPU.

    Memory, precision and arguments as `row_cross_entropies`.
    """
    return torch.stack([losses.double().cpu() for losses in _losses_by_row(logits, targets)])


def _losses_by_row(logits: torch.Tensor, targets: torch.Tensor) -> Iterator[torch.Tensor]:
    """The losses of each row's tokens, (tokens,), one row after another."""
    tokens, vocabulary = logits.shape[1:]
    size = max(1, _CACHED_LOGITS // vocabulary) if logits.device.type == "cpu" else tokens

    def losses(some_logits: torch.Tensor, some_targets: torch.Tensor) -> torch.Tensor:
        some_logits = at_least_float32(some_logits)
        return F.cross_entropy(some_logits, some_targets, ignore_index=IGNORED_TARGET, reduction="none")

    for row_logits, row_targets in zip(logits, targets.to(logits.device), strict=True):
        parts = map(losses, row_logits.split(size), row_targets.split(size))
        yield where_float64_is(torch.cat(list(parts)))


_CACHED_LOGITS = 2**20
