"""What removing layers costs, all of them together, in numbers and in words."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from mixln.report.series import Estimate

_MUCH = 0.5
"""Of what a model knows beyond token frequencies: who loses more is told."""


@dataclass(frozen=True)
class AccuracyCost:
    """What removing layers costs a classifier of images in accuracy.

    Attributes:
        before: of the whole model.
        after: without the layers.
        difference: after - before; its interval is that of the paired difference over images.
        constant: of always naming the most frequent class of the images.
    """

    before: Estimate
    after: Estimate
    difference: Estimate
    constant: float


@dataclass(frozen=True)
class PruningCost:
    """What removing layers costs, without healing; all numbers are of the same text or images.

    Attributes:
        unit: of the numbers: the loss of a language model or classifier, or how far the pooled embedding of another
            model turns.
        before: of the whole model.
        after: without the layers.
        difference: after - before; its interval is that of the paired difference over documents.
        frequencies: the loss of the text's own token frequencies, which a model that has learned nothing but these has;
            of a classifier that of the images' own class frequencies; None: the model is neither.
        tokens: that the numbers are over; of images, how many.
        counted: what `tokens` counts.
        accuracy: of a classifier of images; None: the model is none.
    """

    unit: str
    before: Estimate
    after: Estimate
    difference: Estimate
    frequencies: float | None
    tokens: int
    counted: Literal["tokens", "images"] = "tokens"
    accuracy: AccuracyCost | None = None

    @property
    def lost_share(self) -> float | None:
        """The part of what the model knows beyond token frequencies that is lost:

            (after - before) / (frequencies - before)

        Of a classifier the part of its accuracy beyond that of the most frequent class, as its loss also grows with how
        sure it is of wrong answers. None: it is neither, or the whole one is no better than the constant.
        """
        if (accuracy := self.accuracy) is not None:
            known = accuracy.before.value - accuracy.constant
            return -accuracy.difference.value / known if known > 0 else None
        if self.frequencies is None or not self.before.value < self.frequencies:
            return None
        return self.difference.value / (self.frequencies - self.before.value)

    @property
    def sentence(self) -> str:
        """The numbers with their 95 % intervals, in a line."""
        accuracy = ""
        if (found := self.accuracy) is not None:
            accuracy = (
                f"; accuracy {found.before.format('.1%')} before, {found.after.format('.1%')} after "
                f"({found.difference.format('+.1%')})"
            )
        return (
            f"{self.unit}, on {self.tokens:,} {self.counted}: {self.before.format('.4f')} before, "
            f"{self.after.format('.4f')} after ({self.difference.format('+.4f')}){accuracy}"
        )

    @property
    def warning(self) -> str | None:
        """In words, that what is left is of little use as it is; None: it is not so."""
        lost = self.lost_share
        if not math.isfinite(self.after.value):
            return "WARNING: without these layers the model gives no finite numbers."
        if lost is None or lost <= _MUCH:
            return None
        if self.accuracy is not None:
            constant = f"always naming the most frequent class is right on {self.accuracy.constant:.1%}"
            if lost >= 1:
                return f"WARNING: the pruned model guesses until it is trained further: {constant}."
            return f"WARNING: {lost:.0%} of the accuracy beyond guessing is lost ({constant})."
        constant = f"token frequencies alone have {self.frequencies:.4f}"
        if lost >= 1:
            return f"WARNING: the pruned model writes noise until it is trained further: {constant}."
        return f"WARNING: {lost:.0%} of what the model knows beyond token frequencies is lost ({constant})."
