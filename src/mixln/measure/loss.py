"""A summed loss and its number of tokens."""

from __future__ import annotations

import math
from dataclasses import dataclass


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
