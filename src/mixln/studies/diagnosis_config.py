"""How a model is diagnosed."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from pkgutil import iter_modules
from typing import Annotated

from mixln.checked import Checked, NonNegativeInt, Range
from mixln.errors import InputError
from mixln.placement.words import did_you_mean

MEASURE_NAMES = tuple(sorted(module.name for module in iter_modules([str(Path(__file__).with_name("measures"))])))
"""What `DiagnosisConfig.measures` can name: the modules of `mixln.studies.measures`."""


@dataclass(frozen=True)
class DiagnosisConfig(Checked):
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
        without: names of what not to measure; these are left out of `measures`.
        fresh_gradients: whether gradient norms are taken of a freshly initialised model too (which is a second one in
            memory).
        interpretability_tokens: of these, for what norms do to the tools of interpretability (attribution, patching,
            entropy neurons), of a language model; 0: none.
        interpretability_prompts: pairs of prompts of the induction task that are patched for that.
        layers: the name of the list of blocks, where it is ambiguous.

    Raises:
        InputError: a number is out of range, or a measure is not one.
    """

    window: Annotated[int, Range(low=2)] = 512
    batch_size: Annotated[int, Range(low=1)] = 8
    max_tokens: Annotated[int, Range(low=2)] = 65_536
    performance_tokens: Annotated[int, Range(low=2)] = 8_192
    gradient_tokens: NonNegativeInt = 4_096
    max_documents: Annotated[int, Range(low=1)] = 256
    run_lengths: tuple[int, ...] = ()
    measures: tuple[str, ...] | None = None
    without: tuple[str, ...] = ()
    fresh_gradients: bool = False
    interpretability_tokens: NonNegativeInt = 0
    interpretability_prompts: Annotated[int, Range(low=1)] = 4
    layers: str | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if any(length < 2 for length in self.run_lengths):
            raise InputError("run_lengths must be 2 or more: single layers are removed anyway")
        for name in (*(self.measures or ()), *self.without):
            if name not in MEASURE_NAMES:
                meant = did_you_mean(name, MEASURE_NAMES)
                raise InputError(f"there is no measure {name!r}.{meant} There are: {', '.join(MEASURE_NAMES)}")
        if self.measures and "gradient_norm_at_init" in self.measures and not self.fresh_gradients:
            raise InputError("gradient_norm_at_init needs a freshly initialised model: add `fresh_gradients=true`")

    def asks_for(self, measure: str) -> bool:
        """Whether a measure is among those to take."""
        return (self.measures is None or measure in self.measures) and measure not in self.without
