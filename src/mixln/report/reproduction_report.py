"""Tables of the papers beside what was measured here, with all that is shown of them."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rich.console import RenderableType
from rich.text import Text

from mixln.report import cells
from mixln.report.reproduction import ReproducedCell, Reproduction
from mixln.report.reproduction_page import write_reproduction_page
from mixln.report.serialize import to_json
from mixln.report.series import interval_columns
from mixln.report.tables import plain_table
from mixln.result import Result, Sentence
from mixln.storage import write_file

_MOST_COLUMNS = 4
"""Of a table whose cells stand side by side in a terminal."""


@dataclass(frozen=True, repr=False)
class ReproductionReport(Result):
    """Tables and figures of the papers beside what was measured; its table has a row for each cell.

    Attributes:
        tables: in their order.
    """

    tables: list[Reproduction] = field(default_factory=list)

    @property
    def version(self) -> str:
        """Of mixln, that made the newest of them."""
        return self.tables[-1].version if self.tables else ""

    def parts(self) -> Iterator[RenderableType]:
        """For each table a headline, the table in the paper's form, what is said of each claim, and what is open."""
        for table in self.tables:
            yield Sentence(table.headline)
            for variant in table.variants:
                yield self._table(table, variant)
            for claim in table.claims:
                number = "" if claim.difference is None else f": {claim.difference.format('+.3f')} ({claim.unit})"
                why = f"; {claim.why}" if claim.why else ""
                under = f" [{claim.condition}]" if claim.condition else ""
                yield Sentence(f"- {claim.verdict}: {claim.says}{under}{number}{why}")
            for point in table.open_points:
                yield Sentence(f"- open in the paper: {point}")
        if self.saved is not None:
            yield f"Page: {self.saved}"

    def rows(self) -> list[dict[str, Any]]:
        """A row for each cell."""
        return [
            {
                "table": table.name,
                "scale": table.scale,
                "row": cell.row,
                "column": cell.column,
                "variant": cell.variant,
                "published": cell.published,
                **interval_columns("measured", cell.measured),
                "seeds": cell.seeds,
                "learning_rate": cell.learning_rate,
                "published_difference": cell.published_difference,
                **interval_columns("difference", cell.difference),
                "verdict": cell.verdict,
            }
            for table in self.tables
            for cell in table.cells
        ]

    def to_dict(self) -> dict[str, Any]:
        """All tables with their cells and claims, as in their files."""
        return {"tables": [json.loads(to_json(table)) for table in self.tables]}

    def _write(self, folder: Path) -> Path:
        for table in self.tables:
            write_table(table, folder)
        return write_reproduction_page(self.tables, folder)

    @staticmethod
    def _table(table: Reproduction, variant: str) -> RenderableType:
        under = f", {variant}" if variant else ""
        shown = plain_table(
            f"{table.title}{under}: {table.quantity}",
            "published, and measured (± standard deviation over seeds); * has not learned more than frequencies",
        )
        shown.add_column("")
        is_wide = len(table.columns) > _MOST_COLUMNS
        heads = ["published\n(measured)"] if is_wide else ["published", "measured"]
        heads += ["difference", "verdict"] if table.baseline and not is_wide else []
        for column in table.columns:
            for head in heads:
                shown.add_column(Text(f"{column}\n{head}"), justify="right", overflow="fold")
        for row in table.rows:
            own = [table.cell(row, column, variant) for column in table.columns]
            shown.add_row(row, *(Text(text) for one in own for text in _texts(table, one, is_wide=is_wide)))
        return shown


def write_table(table: Reproduction, folder: Path) -> Path:
    """Write a table as JSON into the folder of all tables, and return the file.

    Raises:
        InputError: it cannot be written.
    """
    return write_file(folder / f"{table.name}.{table.scale}.json", to_json(table))


def _texts(table: Reproduction, cell: ReproducedCell, *, is_wide: bool) -> Sequence[str]:
    found = [table.published(cell), table.written(cell)]
    if is_wide:
        published, measured = found
        return [published if measured == published else f"{published}\n({measured})"]
    if table.baseline:
        difference = cells.MISSING if cell.difference is None else cell.difference.format("+.3f")
        found += ["baseline" if cell.row == table.baseline else difference, cell.verdict]
    return found
