"""The tables and figures that can be reproduced, and the runs of one, as results to be shown."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rich.console import RenderableType
from rich.text import Text

from mixln.report import cells
from mixln.report.tables import plain_table
from mixln.result import Result, Sentence
from mixln.storage import write_file


@dataclass(frozen=True)
class ListedTable:
    """A table or figure that can be reproduced.

    Attributes:
        name: to ask for it by.
        title: what it shows.
        paper: its short name.
        editions: where it stands in the editions of the paper, in words.
        scales: at which it has runs.
        state: of each scale of which there are results, in words.
    """

    name: str
    title: str
    paper: str
    editions: str
    scales: list[str]
    state: list[str]


@dataclass(frozen=True, repr=False)
class ListedTables(Result):
    """All of them; the table has a row for each.

    Attributes:
        tables: in their order.
    """

    tables: list[ListedTable] = field(default_factory=list)

    def parts(self) -> Iterator[RenderableType]:
        """A table."""
        shown = plain_table("Tables and figures of the papers", "make one: mixln reproduce NAME")
        for name in ("name", "what it shows", "in the paper", "scales"):
            shown.add_column(name, overflow="fold", no_wrap=name == "name")
        for one in self.tables:
            editions = f"{one.paper}: {one.editions}"
            shown.add_row(*map(Text, (one.name, one.title, editions, ", ".join(one.scales))))
        yield shown
        yield from (Sentence(f"- {state}") for one in self.tables for state in one.state)

    def rows(self) -> list[dict[str, Any]]:
        """A row for each."""
        return [
            {
                "name": one.name,
                "title": one.title,
                "paper": one.paper,
                "editions": one.editions,
                "scales": ", ".join(one.scales),
                "state": "; ".join(one.state),
            }
            for one in self.tables
        ]

    def _write(self, folder: Path) -> Path:
        lines = [f"{one.name}\t{one.title}\t{one.editions}" for one in self.tables]
        return write_file(folder / "tables.tsv", "\n".join(["name\ttitle\teditions", *lines]) + "\n")


@dataclass(frozen=True, repr=False)
class PlannedRuns(Result):
    """The runs of tables, none of which is made.

    Attributes:
        runs: rows with table, row, column, variant, seed, learning_rate, steps, hours and state.
        device: that hours are estimated for.
    """

    runs: Sequence[Mapping[str, Any]] = field(default_factory=list)
    device: str = ""

    def parts(self) -> Iterator[RenderableType]:
        """A table, and the sum."""
        shown = plain_table("Runs", f"hours: estimated for one {self.device}")
        names = ("table", "row", "column", "variant", "learning_rate", "seed", "steps", "hours", "state")
        for name in names:
            shown.add_column(name.replace("_", " "), overflow="fold")
        for run in self.runs:
            written = {**run, "hours": cells.significant(run["hours"]), "learning_rate": f"{run['learning_rate']:g}"}
            shown.add_row(*(Text(str(written[name])) for name in names))
        yield shown
        left = [run for run in self.runs if run["state"] != "finished"]
        hours = sum(run["hours"] for run in left)
        yield Sentence(
            f"{len(self.runs) - len(left)} of {len(self.runs)} runs are finished; the others take about "
            f"{cells.significant(hours)} hours on one {self.device}. Further seeds are run at the best learning rate "
            "of the first, which is not known before: they stand at the first of the rates."
        )

    def rows(self) -> Sequence[Mapping[str, Any]]:
        """A row for each run."""
        return self.runs

    def _write(self, folder: Path) -> Path:
        lines = ["\t".join(map(str, run.values())) for run in self.runs]
        head = "\t".join(self.runs[0]) if self.runs else ""
        return write_file(folder / "runs.tsv", "\n".join([head, *lines]) + "\n")
