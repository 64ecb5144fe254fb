"""Which classes of transformers are swept, found from its own mappings."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import Any, Literal

import transformers
from transformers.models.auto import modeling_auto

Family = Literal["causal", "masked", "base", "vision", "image_classification", "image_text", "sequence_classification"]

_MAPPINGS: dict[Family, tuple[str, ...]] = {
    "causal": ("MODEL_FOR_CAUSAL_LM_MAPPING_NAMES",),
    "masked": ("MODEL_FOR_MASKED_LM_MAPPING_NAMES",),
    "image_classification": ("MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING_NAMES",),
    "image_text": ("MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES",),
    "sequence_classification": ("MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES",),
    "vision": ("MODEL_FOR_IMAGE_MAPPING_NAMES",),
    "base": ("MODEL_MAPPING_NAMES", "MODEL_FOR_TEXT_ENCODING_MAPPING_NAMES"),
}


@dataclass(frozen=True, order=True)
class Entry:
    """A class of transformers.

    Attributes:
        name: of the class.
        family: what it is swept as: the first of the families whose mapping has it.
    """

    name: str
    family: Family

    @property
    def model_class(self) -> Any:
        """The class itself."""
        return getattr(transformers, self.name)


@cache
def catalogue() -> tuple[Entry, ...]:
    """Every class of the families, each once."""
    found: dict[str, Family] = {}
    for family, mappings in _MAPPINGS.items():
        for mapping in mappings:
            for names in getattr(modeling_auto, mapping, {}).values():
                for name in (names,) if isinstance(names, str) else names:
                    found.setdefault(name, family)
    there = set(dir(transformers))  # to ask for one would import its module
    return tuple(Entry(name, family) for name, family in found.items() if name in there)


@cache
def bases_of_causal_models() -> frozenset[str]:
    """The base classes whose blocks are also those of a causal language model."""
    bases: dict[str, str | tuple[str, ...]] = modeling_auto.MODEL_MAPPING_NAMES
    names = [bases[kind] for kind in modeling_auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES if kind in bases]
    return frozenset(name for given in names for name in ((given,) if isinstance(given, str) else given))


def entry_of(name: str) -> Entry:
    """The entry of a class."""
    return next(found for found in catalogue() if found.name == name)
