"""How a model is diagnosed."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from pkgutil import iter_modules
from typing import Annotated, Any, Protocol

from mixln.checked import Checked, NonNegativeInt, Range
from mixln.errors import InputError
from mixln.placement.words import did_you_mean

MEASURE_NAMES = tuple(sorted(module.name for module in iter_modules([str(Path(__file__).with_name("measures"))])))
"""The measures of this library: the modules of `mixln.studies.measures`."""

_REGISTERED: dict[str, Any] = {}


class NamedMeasure(Protocol):
    """An entry of `mixln.studies.measuring`, whose module imports PyTorch."""

    name: str


def register_measure(entry: NamedMeasure) -> None:
    """Make a measure of your own known to `mixln.diagnose` and the command line.

    Args:
        entry: as the `ENTRY` of a module of `mixln.studies.measures`; see `mixln.studies.measuring`.

    Raises:
        InputError: there is a measure of that name.
    """
    if entry.name in measure_names():
        raise InputError(f"there is a measure {entry.name!r} already: choose another name")
    _REGISTERED[entry.name] = entry


def measure_names() -> tuple[str, ...]:
    """Return what `DiagnosisConfig.measures` can name: the measures of this library, and those registered."""
    return (*MEASURE_NAMES, *_REGISTERED)


def registered_measures() -> tuple[Any, ...]:
    """Return the measures that `register_measure` has been given."""
    return tuple(_REGISTERED.values())


@dataclass(frozen=True)
class DiagnosisConfig(Checked):
    """How a model is measured.

    Attributes:
        sequence_length: Tokens of a piece of text. Fewer are used where the model takes no more.
        batch_size: Pieces of text, or images, that go through the model together. It does not change the results.
        max_tokens: Tokens of text for measures that need one forward pass. They are taken from all documents alike.
        performance_tokens: As many of these tokens are used for measures that need many passes, such as removal.
        gradient_tokens: As many of these tokens are used for gradient norms. With 0 there are none.
        max_documents: Documents of the text to read at most.
        max_images: Images for measures that need one forward pass, drawn from all alike. All of them are in memory.
        performance_images: As many of these images are used for measures that need many passes, such as removal.
        gradient_images: As many of these images are used for gradient norms. With 0 there are none.
        run_lengths: Remove runs of so many layers too, beside single layers.
        measures: The names of the measures to take, as `measure_names` lists them. None: all.
        without: The names of measures that are not taken.
        fresh_gradients: Take gradient norms of a freshly initialised model too, which is a second one in memory.
        interpretability_tokens: As many of these tokens show what the norms of a language model do to attribution,
            patching and entropy neurons. With 0 this is not measured.
        interpretability_prompts: Pairs of prompts of the induction task that are patched for that.
        stack: The name of the list of blocks, where the model has several.

    Raises:
        InputError: a number is out of range, or a measure is not one.
    """

    sequence_length: Annotated[int, Range(low=2)] = 512
    batch_size: Annotated[int, Range(low=1)] = 8
    max_tokens: Annotated[int, Range(low=2)] = 65_536
    performance_tokens: Annotated[int, Range(low=2)] = 8_192
    gradient_tokens: NonNegativeInt = 4_096
    max_documents: Annotated[int, Range(low=1)] = 256
    max_images: Annotated[int, Range(low=2)] = 2_000
    performance_images: Annotated[int, Range(low=2)] = 1_000
    gradient_images: NonNegativeInt = 100
    run_lengths: tuple[int, ...] = ()
    measures: tuple[str, ...] | None = None
    without: tuple[str, ...] = ()
    fresh_gradients: bool = False
    interpretability_tokens: NonNegativeInt = 0
    interpretability_prompts: Annotated[int, Range(low=1)] = 4
    stack: str | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if any(length < 2 for length in self.run_lengths):
            raise InputError("run_lengths must be 2 or more: single layers are removed anyway")
        for name in (*(self.measures or ()), *self.without):
            if name not in measure_names():
                meant = did_you_mean(name, measure_names())
                raise InputError(f"there is no measure {name!r}.{meant} There are: {', '.join(measure_names())}")
        if self.measures and "gradient_norm_at_init" in self.measures and not self.fresh_gradients:
            raise InputError("gradient_norm_at_init needs a freshly initialised model: add `fresh_gradients=true`")

    def asks_for(self, measure: str) -> bool:
        """Whether a measure is among those to take."""
        return (self.measures is None or measure in self.measures) and self.may_take(measure)

    def may_take(self, measure: str) -> bool:
        """Whether a measure is not among those to leave out."""
        return measure not in self.without
