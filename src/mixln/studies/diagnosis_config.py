"""How a model is diagnosed."""

from __future__ import annotations

from dataclasses import dataclass

from mixln.errors import InputError
from mixln.studies.diagnosis_gradients import GRADIENT_SERIES
from mixln.studies.diagnosis_measures import MEASURES, MeasureKind, removal_of_runs

MEASURE_NAMES = (*(kind.name for kind in MEASURES), *GRADIENT_SERIES)
"""What `DiagnosisConfig.measures` can name."""


@dataclass(frozen=True)
class DiagnosisConfig:
    """How a model is measured.

    Attributes:
        window: tokens of a piece of text; less if the model takes no more.
        batch_size: pieces that go through the model together; without influence on the results.
        max_tokens: of text for what one forward pass tells, taken from all documents alike.
        performance_tokens: of these, for what needs many passes: performance drops and Jacobians.
        gradient_tokens: of these, for gradient norms; 0: none.
        max_documents: to read.
        run_lengths: lengths of the runs of layers to remove, beside single layers.
        measures: names of what to measure (`MEASURE_NAMES`); None: all.
        fresh_gradients: whether gradient norms are taken of a freshly initialised model too (which is a second one in
            memory).
        interpretability_tokens: of these, for what norms do to the tools of interpretability (attribution, patching,
            entropy neurons), of a language model; 0: none.
        interpretability_prompts: pairs of prompts of the induction task that are patched for that.
        layers: the name of the list of blocks, where it cannot be told.
    """

    window: int = 512
    batch_size: int = 8
    max_tokens: int = 65_536
    performance_tokens: int = 8_192
    gradient_tokens: int = 4_096
    max_documents: int = 256
    run_lengths: tuple[int, ...] = ()
    measures: tuple[str, ...] | None = None
    fresh_gradients: bool = False
    interpretability_tokens: int = 0
    interpretability_prompts: int = 4
    layers: str | None = None

    def check(self) -> DiagnosisConfig:
        """Return this, if it makes sense.

        Raises:
            InputError: a number is out of range, or a measure is not one.
        """
        for name, least in (
            ("window", 2),
            ("batch_size", 1),
            ("max_tokens", 2),
            ("performance_tokens", 2),
            ("max_documents", 1),
            ("gradient_tokens", 0),
            ("interpretability_tokens", 0),
            ("interpretability_prompts", 1),
        ):
            if getattr(self, name) < least:
                raise InputError(f"{name} must be at least {least}, not {getattr(self, name)}")
        if any(length < 2 for length in self.run_lengths):
            raise InputError("run_lengths must be 2 or more: single layers are removed anyway")
        for name in self.measures or ():
            if name not in MEASURE_NAMES:
                raise InputError(f"there is no measure {name!r}. There are: {', '.join(MEASURE_NAMES)}")
        if self.measures and "gradient_norm_at_init" in self.measures and not self.fresh_gradients:
            raise InputError("gradient_norm_at_init needs a freshly initialised model: add --fresh-gradients true")
        return self

    def measures_of(self, num_layers: int) -> list[MeasureKind]:
        """The measures of a pass that are asked for, those of runs of layers among them.

        Raises:
            InputError: a run is as long as the model of `num_layers`.
        """
        kinds = [kind for kind in MEASURES if self.asks_for(kind.name)]
        if self.asks_for("removal"):
            if too_long := [length for length in self.run_lengths if length >= num_layers]:
                raise InputError(
                    f"run_lengths has {too_long[0]}, and the model {num_layers} layers: leave one at least"
                )
            kinds += [removal_of_runs(length) for length in self.run_lengths]
        return kinds

    def gradient_series(self) -> list[str]:
        """The series of gradient norms that are asked for."""
        asked = [name for name in GRADIENT_SERIES if self.asks_for(name)] if self.gradient_tokens else []
        return [name for name in asked if self.fresh_gradients or name != "gradient_norm_at_init"]

    def asks_for(self, measure: str) -> bool:
        """Whether a measure is among those to take."""
        return self.measures is None or measure in self.measures
