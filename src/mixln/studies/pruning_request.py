"""Which layers to remove: as they are asked for, and as they are written down."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Annotated, Literal, get_args

from mixln.checked import Checked, NonNegativeInt, Range
from mixln.data.image_config import ImageDataConfig
from mixln.errors import InputError
from mixln.report.pruning_cost import PruningCost
from mixln.studies.diagnosis_config import DiagnosisConfig
from mixln.version import __version__

PRUNING_FILE = "pruning.json"
HEALING_FILE = "healing.json"

Criterion = Literal["angular", "removal", "influence"]
CRITERIA: tuple[Criterion, ...] = get_args(Criterion)

_MOST_LAYERS = 10_000
"""Of any model: a slip in a range is found before it fills the memory."""


@dataclass(frozen=True)
class PruningRequest(Checked):
    """What to remove, and how it is chosen.

    Attributes:
        source: Hugging Face folder or hub name of the model.
        layers: these, counted from 1; None: `drop` of them are chosen.
        drop: how many.
        by: the criterion.
        consecutive: whether they must be a run.
        text: corpus to measure on.
        text_field: field or column of it, and of a text to heal on, that holds a document.
        images: to measure on, of a model that takes images; None: it is measured on the text.
        measurement: how much of it; its `measures` and `run_lengths` follow from the criterion.
        stack: name of the list of blocks, where it is ambiguous.
        name: what the model is called in `pruning.json`; empty: as `source`.
    """

    source: str
    layers: tuple[Annotated[int, Range(low=1)], ...] | None = None
    drop: NonNegativeInt = 0
    by: Criterion = "removal"
    consecutive: bool = False
    text: str = "python"
    text_field: str = "text"
    images: ImageDataConfig | None = None
    measurement: DiagnosisConfig = field(default_factory=DiagnosisConfig)
    stack: str | None = None
    name: str = ""

    @property
    def indices(self) -> tuple[int, ...] | None:
        """The layers that are named, counted from 0; None: none are."""
        return None if self.layers is None else tuple(layer - 1 for layer in self.layers)

    def record(self, indices: Sequence[int], num_layers: int) -> PruningRecord:
        """Return the record of removing the layers with these indices (from 0), of `num_layers`."""
        chosen = self.layers is None
        on_text, on_images = chosen and self.images is None, chosen and self.images is not None
        return PruningRecord(
            source=self.name or self.source,
            removed_layers=[index + 1 for index in indices],
            num_layers_before=num_layers,
            criterion=self.by if chosen else None,
            consecutive=chosen and self.consecutive,
            text=self.text if on_text else None,
            max_tokens=self.measurement.max_tokens if on_text else None,
            window=self.measurement.sequence_length if on_text else None,
            images=self.images.source if on_images and self.images else None,
            max_images=self.measurement.max_images if on_images else None,
        )


@dataclass(frozen=True)
class PruningRecord:
    """What `pruning.json` in the folder of a pruned model says.

    Attributes:
        source: the model that was pruned.
        removed_layers: counted from 1, in that model.
        num_layers_before: of that model.
        criterion: how the layers were chosen; None: they were named.
        consecutive: whether they had to be a run.
        text: what was measured on, if something was.
        max_tokens: of it.
        window: tokens of a piece of it.
        images: what was measured on instead, if something was.
        max_images: of them.
        version: of mixln.
        left_out: what of the source's folder did not go with it, such as weights in other formats.
        cost: of removing the layers, on the text or images; None: it could not be measured.
    """

    source: str
    removed_layers: list[int]
    num_layers_before: int
    criterion: Criterion | None
    consecutive: bool
    text: str | None = None
    max_tokens: int | None = None
    window: int | None = None
    images: str | None = None
    max_images: int | None = None
    version: str = __version__
    left_out: list[str] = field(default_factory=list)
    cost: PruningCost | None = None


def parse_layers(text: str) -> list[int]:
    """Read layers such as `21-27` or `3,5,8-10`: counted from 1, both ends included.

    Returns:
        Their numbers, counted from 1, as they were given.

    Raises:
        InputError: it is not of that form.
    """
    layers: list[int] = []
    for part in text.replace(" ", "").split(","):
        match = re.fullmatch(r"(\d+)(?:-(\d+))?", part)
        if match is None:
            raise InputError(f"`layers={text}`: {part or text!r} is no layer. Write them as 21-27 or 3,5,8-10")
        first, last = int(match[1]), int(match[2] or match[1])
        if first < 1:
            raise InputError(f"`layers={text}`: layers are counted from 1")
        if last > _MOST_LAYERS:
            raise InputError(f"`layers={text}`: there is no layer {last}")
        if last < first:
            raise InputError(f"`layers={text}`: {part} ends before it begins")
        layers.extend(range(first, last + 1))
    return layers
