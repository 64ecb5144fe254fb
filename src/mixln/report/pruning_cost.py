"""What removing layers costs, all of them together, in numbers and in words."""

from __future__ import annotations

import math
from dataclasses import dataclass

from mixln.report.series import Estimate

_MUCH = 0.5
"""Of what a model knows beyond token frequencies: who loses more is told."""


@dataclass(frozen=True)
class PruningCost:
    """What removing layers costs, without healing; all numbers are of the same text.

    Attributes:
        unit: of the numbers: the loss of a language model, or how far the pooled embedding of another model turns.
        before: of the whole model.
        after: without the layers.
        difference: after - before; its interval is that of the paired difference over documents.
        frequencies: the loss of the text's own token frequencies, which a model that has learned nothing but these has;
            None: the model is no language model.
        tokens: that the numbers are over.
    """

    unit: str
    before: Estimate
    after: Estimate
    difference: Estimate
    frequencies: float | None
    tokens: int

    @property
    def lost_share(self) -> float | None:
        """The part of what the model knows beyond token frequencies that is lost:

            (after - before) / (frequencies - before)

        None: it is no language model, or the whole one is no better than token frequencies.
        """
        if self.frequencies is None or not self.before.value < self.frequencies:
            return None
        return self.difference.value / (self.frequencies - self.before.value)

    @property
    def sentence(self) -> str:
        """The numbers with their 95 % intervals, in a line."""
        return (
            f"{self.unit}, on {self.tokens:,} tokens: {self.before.format('.4f')} before, {self.after.format('.4f')} "
            f"after ({self.difference.format('+.4f')})"
        )

    @property
    def warning(self) -> str | None:
        """In words, that what is left is of little use as it is; None: it is not so."""
        lost = self.lost_share
        if not math.isfinite(self.after.value):
            return "WARNING: without these layers the model gives no finite numbers."
        if lost is None or lost <= _MUCH:
            return None
        constant = f"token frequencies alone have {self.frequencies:.4f}"
        if lost >= 1:
            return f"WARNING: the pruned model writes noise until it is trained further: {constant}."
        return f"WARNING: {lost:.0%} of what the model knows beyond token frequencies is lost ({constant})."
