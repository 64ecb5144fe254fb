"""An estimate with all that is shown of it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rich.console import RenderableType

from mixln.estimation.result import Estimate
from mixln.estimation.tables import estimate_parts
from mixln.records import encode
from mixln.result import Result
from mixln.storage import write_file

ESTIMATE_FILE = "estimate.json"


@dataclass(frozen=True, repr=False)
class RunEstimate(Result, Estimate):
    """What a run needs; its table has a row for each way of sharing the model, `save` writes `estimate.json`.

    See `mixln.estimation.result.Estimate` for what it holds.
    """

    @property
    def summary(self) -> str:
        """Parameters, time, and whether it fits."""
        fits = "fits" if self.chosen.fits else "does not fit"
        return f"{self.parameters.total:,} parameters, {self.time.hours:.3g} hours, {fits} on {self.device.name}"

    def parts(self) -> Iterator[RenderableType]:
        """Tables of the model, the memory and the time; whether it fits; the assumptions."""
        return estimate_parts(self)

    def rows(self) -> list[dict[str, Any]]:
        """A row for each way of sharing the model: memory in bytes on each device."""
        rows: list[dict[str, Any]] = []
        for plan in self.plans:
            memory = {f"{name}_bytes": size for name, size in asdict(plan.memory).items()}
            rows.append(
                {
                    "plan": plan.label,
                    "devices": plan.plan.devices,
                    "rows": plan.rows,
                    "micro_batches": plan.micro_batches,
                    **memory,
                    "total_bytes": plan.memory.total,
                    "fits": plan.fits,
                    "chosen": plan.chosen,
                }
            )
        return rows

    def to_dict(self) -> dict[str, Any]:
        """All of it, with the totals."""
        return encode(Estimate.to_dict(self), type(self).__name__)

    def _write(self, folder: Path) -> Path:
        return write_file(folder / ESTIMATE_FILE, json.dumps(self.to_dict(), indent=2) + "\n")
