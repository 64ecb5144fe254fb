"""What a change of the model costs, on a batch: a loss, wrong answers, or the turn of a pooled embedding."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol

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


class Loss(ABC):
    """A loss that a model was trained with: it judges changes, and has gradients.

    Attributes:
        name: what harm is measured in, for people.
        unit: of the loss, summed over what it is the mean over.
        beside: what else is judged where layers are removed, by name: `accuracy` is the share of right answers.
    """

    name: ClassVar[str]
    unit: ClassVar[str]
    beside: Mapping[str, Performance] = {}
    needs_head = True

    @abstractmethod
    def summed(self, output: Any, batch: ModelBatch) -> torch.Tensor:
        """(rows,), float64 on the CPU: the sum over what counts of each row. Gradients flow through it.

        Raises:
            InputError: the batch has no targets for such an output.
        """

    def counts(self, batch: ModelBatch) -> torch.Tensor:
        """(rows,): how many targets each row has."""
        assert batch.targets is not None
        return (batch.targets != IGNORED_TARGET).reshape(len(batch.targets), -1).sum(1)

    def on(self, output: Any, batch: ModelBatch) -> BatchPerformance:
        """Judge other outputs for a batch, given that of the whole model.

        Raises:
            InputError: as `summed`; or the loss is not finite.
        """
        whole = self.summed(output, batch)
        counts = self.counts(batch)
        return BatchPerformance(_finite(whole, counts, "loss"), lambda other: self.summed(other, batch), counts)


class LanguageModelLoss(Loss):
    """Total cross-entropy of the predicted tokens, in nats: P of Mix-LN (Li, Yin, Liu 2024), section 2."""

    name = "loss, nats per token"
    unit = "nats per token"

    def summed(self, output: Any, batch: ModelBatch) -> torch.Tensor:
        """By `output.logits` (rows, tokens, vocabulary) and the batch's targets (rows, tokens).

        Raises:
            InputError: the batch has no targets, or the output no logits.
        """
        if batch.targets is None or not hasattr(output, "logits"):
            raise InputError("the loss of a language model needs a model with a head, and targets")
        return row_cross_entropies(output.logits, batch.targets)


class ClassificationError:
    """1 where the target's logit is not larger than all others, else 0; the mean is 1 - accuracy.

    A target whose logit another class equals is not answered, so that a model that always says the same scores nothing
    by it. So is one of a row with a logit that is no number.
    """

    name = "share of wrong answers"
    needs_head = True

    def on(self, output: Any, batch: ModelBatch) -> BatchPerformance:
        """Judge by `output.logits` (rows, classes) and the batch's targets (rows,).

        Raises:
            InputError: the batch has no such targets, or the output no such logits.
        """
        logits, targets = class_logits(output, batch)
        counts = (targets != IGNORED_TARGET).double()
        return BatchPerformance(
            _wrong(logits, targets), lambda other: _wrong(class_logits(other, batch)[0], targets), counts
        )


class ClassificationLoss(Loss):
    """Cross-entropy of a classifier of images, in nats, beside the share of wrong answers."""

    name = "loss, nats per image"
    unit = "nats per image"
    beside: Mapping[str, Performance] = {"accuracy": ClassificationError()}

    def summed(self, output: Any, batch: ModelBatch) -> torch.Tensor:
        """By `output.logits` (rows, classes) and the batch's targets (rows,).

        Raises:
            InputError: the batch has no such targets, or the output no such logits.
        """
        return class_losses(*class_logits(output, batch))


def class_logits(output: Any, batch: ModelBatch) -> tuple[torch.Tensor, torch.Tensor]:
    """Return a classifier's logits (rows, classes) and its targets (rows,) on their device.

    Raises:
        InputError: there are none, or none of this shape; or a target is no class of the logits.
    """
    logits, targets = getattr(output, "logits", None), batch.targets
    if not isinstance(logits, torch.Tensor) or logits.ndim != 2 or targets is None or targets.ndim != 1:
        raise InputError(
            "the loss of a classifier needs a model with a head that gives logits (rows, classes), and a target for "
            f"each row; a {type(output).__name__} came"
        )
    if len(targets) and not bool(((targets == IGNORED_TARGET) | ((targets >= 0) & (targets < logits.shape[1]))).all()):
        raise InputError(
            f"targets must be classes from 0 to {logits.shape[1] - 1}, or {IGNORED_TARGET} where there is none; they "
            f"go from {int(targets.min())} to {int(targets.max())}"
        )
    return logits, targets.to(logits.device)


def class_losses(logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """-log softmax(logits)[target] of each row, in nats, 0 without a target: (rows,), float64 on the CPU."""
    losses = F.cross_entropy(at_least_float32(logits), targets, ignore_index=IGNORED_TARGET, reduction="none")
    return where_float64_is(losses).double().cpu()


def _wrong(logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """(rows,), float64 on the CPU: whether the target's logit is not larger than all others; 0 without a target."""
    has_target = targets != IGNORED_TARGET
    own = logits.gather(1, targets.clamp_min(0)[:, None])
    right = (logits < own).sum(1) == logits.shape[1] - 1
    return (has_target & ~right).cpu().double()


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
