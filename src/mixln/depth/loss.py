"""Validation loss: the one definition that training, comparisons and diagnosis share."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import nn

from mixln.depth.forward import IGNORED_TARGET, TokenBatch, autocast, batch_logits, evaluation_mode
from mixln.depth.sums import at_least_float32, float64_sum, no_tokens_error


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


def total_cross_entropy(logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """Sum over predicted tokens of -log softmax(logits)[target], in nats.

    Softmax in float32 (float64 for float64 logits), the sum in float64.

    Args:
        logits: (batch, sequence, vocabulary), any floating dtype.
        targets: (batch, sequence), already shifted, -100 = not predicted.

    Returns:
        A float64 scalar through which gradients flow.
    """
    losses = F.cross_entropy(
        at_least_float32(logits).flatten(0, 1),
        targets.to(logits.device).flatten(),
        ignore_index=IGNORED_TARGET,
        reduction="none",
    )
    return float64_sum(losses, 0)


def batch_loss(logits: torch.Tensor, targets: torch.Tensor) -> EvaluationLoss:
    """`total_cross_entropy` and the number of predicted tokens of one batch."""
    return EvaluationLoss(total_cross_entropy(logits, targets).item(), int((targets != IGNORED_TARGET).sum()))


def evaluation_loss(
    model: nn.Module, batches: Iterable[TokenBatch], *, autocast_dtype: torch.dtype | None = None
) -> EvaluationLoss:
    """Validation loss: total cross-entropy / total predicted tokens.

    It does not depend on how the rows are cut into batches; a last, smaller batch counts by its tokens. Dropout is
    off, and the model gets its mode back.

    Args:
        model: any module called with `input_ids`, `position_ids` and `use_cache` that returns an object with `logits`.
        batches: (batch, sequence) tokens; read through once.
        autocast_dtype: autocast to this; None: the model's own precision.

    Raises:
        InputError: there is no predicted token in `batches`.
    """
    loss = EvaluationLoss(0.0, 0)
    with evaluation_mode(model), torch.no_grad(), autocast(model, autocast_dtype):
        for batch in batches:
            loss += batch_loss(batch_logits(model, batch), batch.targets)
    if loss.num_tokens == 0:
        raise no_tokens_error()
    return loss
