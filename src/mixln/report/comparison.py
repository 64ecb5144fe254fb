"""A comparison with all that is shown of it: the headline, the tables, the page."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import RenderableType

from mixln.report.headline import findings, headline
from mixln.report.html import write_report
from mixln.report.results import ComparisonResult, RunResult
from mixln.report.serialize import to_json
from mixln.report.series import interval_columns
from mixln.report.shown_names import with_shown_names
from mixln.report.step_tables import step_findings, step_tables
from mixln.report.tables import grid_table, summary_table
from mixln.result import Result


@dataclass(frozen=True, repr=False)
class Comparison(Result, ComparisonResult):
    """A whole comparison; its table has a row for each run, `save` writes `report.html` beside `results.json`.

    See `mixln.report.results.ComparisonResult` for what it holds.
    """

    @property
    def headline(self) -> str:
        """The main finding, in one sentence."""
        return headline(with_shown_names(self))

    @property
    def findings(self) -> list[str]:
        """What else has to be said to read the numbers rightly."""
        return findings(with_shown_names(self))

    @property
    def summary(self) -> str:
        """The headline."""
        return self.headline

    def parts(self) -> Iterator[RenderableType]:
        """The summary, the grid of learning rates if any, the findings, the steps after it, where the report is."""
        shown = with_shown_names(self)
        yield summary_table(shown)
        if (grid := grid_table(shown)) is not None:
            yield grid
        yield self.headline
        yield from (f"- {sentence}" for sentence in self.findings)
        for number, step in enumerate(shown.then):
            yield from step_tables(step, shown.baseline)
            yield from (f"- {sentence}" for sentence in step_findings(shown.then, number, shown.baseline))
            yield from (f"- {sentence}" for sentence in step.verdicts)
        if self.saved is not None:
            yield f"Report: {self.saved}"

    def rows(self) -> list[dict[str, Any]]:
        """A row for each run."""
        return [self._row(run) | self._values_of_steps(run) for run in self.runs]

    def _row(self, run: RunResult) -> dict[str, Any]:
        """The columns of a run, of which those that count bear the name of what is counted."""
        unit = self.terms.unit
        names = ("placement", "seed", "learning_rate", "validation_loss", "perplexity", "diverged")
        row = {name: getattr(run, name) for name in names if name != "perplexity" or self.terms.has_perplexity}
        for quantity in self.quantities:
            row |= interval_columns(quantity.name, run.values.get(quantity.name))
        row |= {f"train_{unit}": run.train_tokens}
        row |= {name: getattr(run, name) for name in ("num_parameters", "embedding_std", "seconds")}
        return row | {f"{unit}_per_second": run.tokens_per_second, self.terms.column: run.has_learned}

    def _values_of_steps(self, run: RunResult) -> dict[str, float | None]:
        """What the steps measured of a run, by the number of the step and the name of the quantity."""
        found: dict[str, float | None] = {}
        for number, step in enumerate(self.then, start=1):
            values = next(
                (one.values for one in step.runs if one.is_of(run.placement, run.seed, run.learning_rate)), {}
            )
            found |= {f"then {number}: {quantity.name}": values.get(quantity.name) for quantity in step.quantities}
        return found

    def to_dict(self) -> dict[str, Any]:
        """All of it, as in `results.json`."""
        return json.loads(to_json(self))

    def _write(self, folder: Path) -> Path:
        return write_report(self, folder)
