"""The studies that tables are made by, and a table or figure as far as it is made."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from mixln.report.reproduction import NOT_RUN, ReproducedCell, ReproducedClaim, Reproduction
from mixln.studies.machine import describe_machine
from mixln.studies.reproduce.quantities import quantity
from mixln.studies.reproduce.recipe_table import RecipeTable
from mixln.studies.reproduce.runs import TableRuns
from mixln.studies.reproduce.verdicts import cells_of, claims_of
from mixln.tasks.kinds import kind_of
from mixln.version import __version__


class TrainingTable(TableRuns):
    """A table whose cells are training runs."""

    def found_cells(self) -> list[ReproducedCell]:
        """Return every cell beside the published number."""
        return cells_of(self, self._all_results())

    def found_claims(self) -> list[ReproducedClaim]:
        """Return what can be said of each claim."""
        return claims_of(self, self._all_results())

    def conditions(self) -> dict[str, str]:
        """Return what the runs of each column share, in words."""
        found: dict[str, str] = {}
        for column in self.specification.columns_at(self.scale):
            recipes: Sequence[Any] = [self.recipe(cell) for cell in self.cells if cell.column == column.name]
            kind = kind_of(recipes[0])
            data: Any = recipes[0].data
            source = getattr(data, "corpus", None) or getattr(data, "source", "")
            words = [kind.model_in_words(recipes[0]), kind.budget_in_words(recipes[0]), f"data: {source}"]
            found[column.name] = "; ".join(words) + (f". {column.note}" if column.note else "")
        rates = {cell.row: ", ".join(f"{rate:g}" for rate in self.rates(cell)) for cell in self.cells}
        same = set(rates.values())
        found["Learning rates"] = (
            next(iter(same)) if len(same) == 1 else "; ".join(f"{row}: {own}" for row, own in rates.items())
        )
        found["Seeds"] = ", ".join(map(str, self.specification.conditions[self.scale].seeds))
        return found

    def _all_results(self) -> Mapping[Any, Any]:
        return {cell: self.results(cell) for cell in self.cells}


Table = TrainingTable | RecipeTable

STUDIES: Mapping[str, Callable[..., Table]] = {"training": TrainingTable, "recipes": RecipeTable}
"""By the field `study` of a specification."""


def open_table(specification: Any, scale: Any, folder: Path, **options: Any) -> Table:
    """Return a table, whose runs are known and none is made; see `TableRuns` for the options.

    Raises:
        InputError: the table has no runs at this scale, or a recipe cannot be used.
    """
    return STUDIES[specification.study](specification, scale, folder, **options)


def reproduced(table: Table, *, command: str = "", stopped_after: int | None = None) -> Reproduction:
    """Return a table beside what its finished runs have come to.

    Args:
        table: its runs.
        command: the command line, for the record.
        stopped_after: steps after which each run was ended: then no claim is judged.
    """
    specification = table.specification
    shown = quantity(specification.quantity)
    cells, claims = table.found_cells(), table.found_claims()
    if not table.all_runs():
        stopped_after = None
    if stopped_after is not None:
        why = f"each run was ended after {stopped_after} steps"
        claims = [ReproducedClaim(one.says, one.condition, NOT_RUN, why, one.unit, None) for one in claims]
        cells = [replace(one, verdict=NOT_RUN, why=why) if one.verdict else one for one in cells]
    return Reproduction(
        name=specification.name,
        title=specification.title,
        paper=specification.paper,
        editions=specification.editions_in_words,
        link=specification.link,
        caption=specification.caption,
        source=specification.source,
        scale=table.scale,
        quantity=shown.title,
        form=shown.form,
        difference=shown.difference_title,
        baseline=specification.baseline,
        cells=cells,
        claims=claims,
        open_points=list(specification.open_points),
        conditions=table.conditions(),
        finished=table.finished(),
        planned=len(table.all_runs()),
        stopped_after=stopped_after,
        machine=describe_machine(),
        command=command,
        version=__version__,
    )
