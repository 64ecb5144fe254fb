"""What a removal of norms returns."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from mixln.records import encode
from mixln.report.norm_removal import NormRemovalReport
from mixln.studies.saved_model import SavedModel


@dataclass(frozen=True, repr=False)
class NormFreeModel(SavedModel):
    """A model whose norms were removed; its table has a row for each removal.

    Attributes:
        report: the losses before and after, and every removal (`norm_removal.json`).
        figure: the losses, with every removal marked; the metrics of both runs lie beside it.
    """

    report: NormRemovalReport
    figure: Path

    def parts(self) -> Iterator[str]:
        """The losses, and where the model is."""
        yield self.report.sentence
        yield f"{self.folder}; metrics of both runs beside {self.figure}"

    def rows(self) -> Sequence[Mapping[str, Any]]:
        """A row for each removal: what went, of which layer (from 1), before which step."""
        return [asdict(removal) for removal in self.report.removals]

    def to_dict(self) -> dict[str, Any]:
        """The report, as in `norm_removal.json`."""
        return encode(asdict(self.report), type(self).__name__)
