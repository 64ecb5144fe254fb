"""What a diagnosis found of one model, as plain data: no models, no tensors."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from mixln.report.series import Presentation, Series, is_better_than_constants

DEAD_SHARE = 0.01
"""A layer is called dead weight if its removal costs less than this share of the loss (of a classifier: of the loss of
class frequencies; of a pooled embedding: turns it by less than this), at the upper end of the interval if there is one.
"""


OVER_TOKEN_FREQUENCIES = "over_token_frequencies"
"""The series of the loss minus the entropy of the measured tokens' own frequencies."""

CLASS_FREQUENCIES = "class_frequencies"
"""The series of the entropy of the measured images' own classes."""

OVER_CLASS_FREQUENCIES = "over_class_frequencies"
"""The series of the loss minus the entropy of the measured images' own classes."""

OVER_MOST_FREQUENT_CLASS = "over_most_frequent_class"
"""The series of the accuracy minus that of always naming the most frequent class of the measured images."""

_OVER_CONSTANTS = (OVER_TOKEN_FREQUENCIES, OVER_CLASS_FREQUENCIES, OVER_MOST_FREQUENT_CLASS)


@dataclass(frozen=True)
class ModelDiagnosis:
    """What was found of one model.

    Attributes:
        model: name or path, as given.
        kind: class of the model.
        layers_name: where its blocks are in it, such as `model.layers`.
        block_kind: class of a block.
        num_layers: L.
        num_parameters: of the whole model.
        layer_parameters: of each block.
        tokens: counted tokens, or images, of the measures of hidden states.
        performance_tokens: the same (for a pooled embedding: rows) of the performance drops.
        documents: that the tokens are of; of images, their number.
        performance: what performance drops are drops of, with its unit.
        series: what was measured, by name.
        shown: how the series are shown.
        notes: what could not be measured, and why.
        seconds: that the diagnosis took.
        unit: what `tokens` counts.
    """

    model: str
    kind: str
    layers_name: str
    block_kind: str
    num_layers: int
    num_parameters: int
    layer_parameters: list[int]
    tokens: int
    performance_tokens: int
    documents: int
    performance: str
    series: dict[str, Series] = field(default_factory=dict)
    shown: Presentation = field(default_factory=Presentation)
    notes: list[str] = field(default_factory=list)
    seconds: float = 0.0
    unit: Literal["tokens", "images"] = "tokens"

    @property
    def measured_on(self) -> str:
        """What was measured on, in words."""
        of_documents = f" of {self.documents} documents" if self.unit == "tokens" else ""
        return f"{self.tokens:,} {self.unit}{of_documents}, {self.performance_tokens:,} for performance drops"

    @property
    def performance_of_whole(self) -> float | None:
        """The performance of the whole model; None if it was not measured."""
        return None if (found := self.series.get("performance")) is None else found.values[0]

    @property
    def has_learned(self) -> bool:
        """False: the model is not clearly better than a constant, so no layer gets a verdict.

        Constants are token frequencies for a language model, by the rule of `mixln.report.series.is_below_frequencies`;
        for a classifier class frequencies by the same rule, or else the accuracy of the most frequent class, which is
        to be beaten at the lower end of the interval. Of any other model, or of a report of an older version, it is not
        known, and not denied.
        """
        over = {name: series.estimates[0] for name, series in self.series.items() if name in _OVER_CONSTANTS}
        return is_better_than_constants(
            [over.get(OVER_TOKEN_FREQUENCIES), over.get(OVER_CLASS_FREQUENCIES)], over.get(OVER_MOST_FREQUENT_CLASS)
        )

    @property
    def to_be_learned(self) -> str:
        """What a model has learned that is better than a constant, in words."""
        return "to tell classes apart" if OVER_CLASS_FREQUENCIES in self.series else "word order"

    @property
    def dead_limit(self) -> float:
        """What the removal of a layer may cost at most for the layer to be called dead weight."""
        # a classifier's loss can be next to 0; the whole model is at 0 by a pooled embedding's turn
        constant = self.series.get(CLASS_FREQUENCIES)
        scale = self.performance_of_whole if constant is None else constant.values[0]
        return DEAD_SHARE * (scale or 1.0)

    @property
    def dead_layers(self) -> list[int]:
        """The layers (from 1) whose removal costs next to nothing.

        Empty if removals were not measured, or the model is no better than a constant (`has_learned`).
        """
        if "removal" not in self.series or not self.has_learned:
            return []
        ends = [one.high for one in self.series["removal"].estimates]
        return [layer for layer, end in enumerate(ends, start=1) if end < self.dead_limit]

    @property
    def findings(self) -> list[str]:
        """What the numbers come to, in sentences, the most important first; then the notes."""
        return [*self.shown.sentences, *self.notes]
