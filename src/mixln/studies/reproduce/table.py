"""A table or figure of a paper, as far as its runs are finished."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from mixln.report.reproduction import NOT_RUN, ReproducedClaim, Reproduction
from mixln.studies.machine import describe_machine
from mixln.studies.reproduce.quantities import quantity
from mixln.studies.reproduce.runs import TableRuns
from mixln.studies.reproduce.verdicts import cells_of, claims_of
from mixln.tasks.kinds import kind_of
from mixln.version import __version__


def reproduced(table: TableRuns, *, command: str = "", stopped_after: int | None = None) -> Reproduction:
    """Return a table beside what its finished runs have come to.

    Args:
        table: its runs.
        command: the command line, for the record.
        stopped_after: steps after which each run was ended: then no claim is judged.
    """
    specification = table.specification
    shown = quantity(specification.quantity)
    results = {cell: table.results(cell) for cell in table.cells}
    claims = claims_of(table, results)
    if stopped_after is not None:
        why = f"each run was ended after {stopped_after} steps"
        claims = [ReproducedClaim(one.says, one.condition, NOT_RUN, why, one.unit, None) for one in claims]
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
        cells=cells_of(table, results),
        claims=claims,
        open_points=list(specification.open_points),
        conditions=_conditions(table),
        finished=table.finished(),
        planned=len(table.all_runs()),
        stopped_after=stopped_after,
        machine=describe_machine(),
        command=command,
        version=__version__,
    )


def _conditions(table: TableRuns) -> dict[str, str]:
    """What the runs of each column share, in words."""
    found: dict[str, str] = {}
    for column in table.specification.columns_at(table.scale):
        recipes: Sequence[Any] = [table.recipe(cell) for cell in table.cells if cell.column == column.name]
        kind = kind_of(recipes[0])
        source = getattr(recipes[0].data, "corpus", None) or getattr(recipes[0].data, "source", "")
        found[column.name] = f"{kind.model_in_words(recipes[0])}; {kind.budget_in_words(recipes[0])}; data: {source}"
        if column.note:
            found[column.name] += f". {column.note}"
    rates = {row: ", ".join(f"{rate:g}" for rate in table.rates(cell)) for cell in table.cells for row in [cell.row]}
    if len(set(rates.values())) == 1:
        found["Learning rates"] = next(iter(rates.values()))
    else:
        found["Learning rates"] = "; ".join(f"{row}: {own}" for row, own in rates.items())
    found["Seeds"] = ", ".join(map(str, table.specification.conditions[table.scale].seeds))
    return found
