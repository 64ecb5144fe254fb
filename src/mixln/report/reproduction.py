"""Tables of the papers beside what was measured here, as plain data: no models, no runs.

Each is written to `PAPER/NAME.SCALE.json` in the folder of all of them, and read back from there for the page.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import ClassVar

from mixln.confidence import fixed
from mixln.report import cells
from mixln.report.series import Estimate

AGREES, DISAGREES, UNKNOWN, NOT_RUN = "agrees", "disagrees", "cannot be told", "not run"
"""What can come of a claim at a scale."""


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
        """The heads of all columns. A column of the paper has several, since what was measured stands beside it."""
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
