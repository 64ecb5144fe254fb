"""Tables of the papers beside what was measured here, as plain data: no models, no runs.

Each is written to `PAPER/NAME.SCALE.json` in the folder of all of them, and read back from there for the page.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

from rich.console import RenderableType
from rich.text import Text

from mixln.confidence import fixed
from mixln.report import cells
from mixln.report.reproduction_page import write_reproduction_page
from mixln.report.serialize import to_json
from mixln.report.series import Estimate, interval_columns
from mixln.report.tables import plain_table
from mixln.result import Result, Sentence
from mixln.storage import write_file

AGREES, DISAGREES, UNKNOWN, NOT_RUN = "agrees", "disagrees", "cannot be told", "not run"
"""What can come of a claim at a scale."""

_MOST_COLUMNS = 4
"""Of a table whose cells stand side by side in a terminal."""


@dataclass(frozen=True)
class ReproducedCell:
    """A cell of a table.

    Attributes:
        row: by its name.
        column: by its name.
        variant: the condition it was run under; empty: there is one only.
        published: the paper's number; None: it has none.
        measured: the mean over seeds here, with its interval from three seeds on; None: there is no finished run.
        spread: standard deviation over seeds; None: there is one.
        seeds: finished runs.
        learning_rate: at which they are, the best of those tried; None: it is not known yet.
        has_learned: whether all of them learned more than frequencies; a row that did not is not ranked.
        published_difference: to the baseline's number.
        difference: of ours to the baseline, paired by seed.
        verdict: on the sign of the difference; empty: there is nothing to compare.
        why: the verdict is not clear.
        folders: of the runs, relative to the folder of all tables.
    """

    row: str
    column: str
    variant: str
    published: float | None
    measured: Estimate | None
    spread: float | None
    seeds: int
    learning_rate: float | None
    has_learned: bool
    published_difference: float | None
    difference: Estimate | None
    verdict: str
    why: str
    folders: list[str]


@dataclass(frozen=True)
class ReproducedClaim:
    """A sentence of a paper, under one condition.

    Attributes:
        says: the sentence.
        condition: column and variant.
        verdict: agrees, disagrees, cannot be told, or not run.
        why: the verdict is not clear, or how it came about.
        unit: of the difference.
        difference: that decides, if it is one.
    """

    says: str
    condition: str
    verdict: str
    why: str
    unit: str
    difference: Estimate | None


@dataclass(frozen=True)
class Reproduction:
    """A table or figure of a paper, beside what was measured.

    Attributes:
        name: `mix-ln/alpha`.
        title: what it shows.
        paper: its short name.
        editions: where it stands, in words.
        link: of the paper.
        caption: what the paper says of it.
        source: where its numbers are from.
        scale: of the runs.
        quantity: what the cells are, with the unit.
        form: how they are written.
        difference: what differences are in.
        baseline: the row that they are taken to; empty: there are none.
        cells: of the table.
        claims: of the paper.
        open_points: what the paper leaves open.
        conditions: what all runs share, as label and text.
        finished: runs.
        planned: runs.
        stopped_after: steps after which each run was ended; None: none was.
        machine: that this was put together on.
        command: the command line; empty from Python.
        version: of mixln.
    """

    SCHEMA_VERSION: ClassVar[int] = 1
    OLDEST_VERSION: ClassVar[int] = 1

    name: str
    title: str
    paper: str
    editions: str
    link: str
    caption: str
    source: str
    scale: str
    quantity: str
    form: str
    difference: str
    baseline: str
    cells: list[ReproducedCell]
    claims: list[ReproducedClaim]
    open_points: list[str]
    conditions: dict[str, str]
    finished: int
    planned: int
    stopped_after: int | None
    machine: str
    command: str
    version: str

    @property
    def columns(self) -> list[str]:
        """The names of the columns that were run."""
        return list(dict.fromkeys(cell.column for cell in self.cells))

    @property
    def variants(self) -> list[str]:
        """The names of the variants."""
        return list(dict.fromkeys(cell.variant for cell in self.cells))

    @property
    def rows(self) -> list[str]:
        """The names of the rows."""
        return list(dict.fromkeys(cell.row for cell in self.cells))

    @property
    def headline(self) -> str:
        """How many claims there are of each verdict, in words."""
        counts = Counter(claim.verdict for claim in self.claims)
        plural = {AGREES: "agree", DISAGREES: "disagree", UNKNOWN: UNKNOWN, NOT_RUN: "are not run"}
        words = [f"{counts[one]} {plural[one]}" for one in plural if counts[one]]
        state = f" ({self.finished} of {self.planned} runs are finished)" if self.planned else ""
        claims = f"of {len(self.claims)} claims {', '.join(words)}" if words else "no claims"
        return f"{self.name} at {self.scale} scale: {claims}{state}"

    @property
    def heads(self) -> list[str]:
        """The heads of the columns, where each column of the paper has several: what was published, what was found."""
        parts = ["published", "measured", *(["difference", "verdict"] if self.baseline else [])]
        return ["", *(f"{column} {part}" for column in self.columns for part in parts)]

    @property
    def reasons(self) -> list[str]:
        """Why verdicts on cells are not clear, each with the cells that it is about."""
        found: dict[str, list[str]] = {}
        for cell in self.cells:
            if cell.why:
                where = ", ".join(filter(None, (cell.row, cell.column, cell.variant)))
                found.setdefault(cell.why, []).append(where)
        return [f"{'; '.join(where)}: {why}" for why, where in found.items()]

    def cell(self, row: str, column: str, variant: str) -> ReproducedCell:
        """Return one cell."""
        return next(one for one in self.cells if (one.row, one.column, one.variant) == (row, column, variant))

    def written(self, cell: ReproducedCell) -> str:
        """Return what was measured as the paper would write it, with the spread over seeds."""
        if cell.measured is None:
            return cells.MISSING
        spread = "" if cell.spread is None else f" ± {fixed(cell.spread, self.form)}"
        return f"{fixed(cell.measured.value, self.form)}{spread}{'' if cell.has_learned else ' *'}"

    def published(self, cell: ReproducedCell) -> str:
        """Return the paper's number."""
        return cells.MISSING if cell.published is None else fixed(cell.published, self.form)


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
