"""Diagnoses side by side: headline, tables for a terminal, page, and all of it on disk (docs/reference/measures.md)."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

from rich.cells import cell_len
from rich.console import RenderableType
from rich.table import Table
from rich.text import Text

from mixln.confidence import fixed
from mixln.report import cells
from mixln.report.diagnosis import ModelDiagnosis
from mixln.report.serialize import to_json
from mixln.report.series import ColumnSpec, Estimate, FigureSpec, TableSpec, interval_columns, merged_figures
from mixln.report.tables import plain_table
from mixln.result import FittingTables, Result, Sentence
from mixln.storage import write_file

REPORT_FILE = "report.json"


@dataclass(frozen=True, repr=False)
class DepthReport(Result):
    """Diagnoses side by side, on the same text or images; its table has a row for each layer, `save` writes a page.

    Attributes:
        models: one for each.
        text: where the text, or the images, are from.
        machine: that it was measured on.
        command: the command line; empty from Python.
        version: of mixln.
    """

    SCHEMA_VERSION: ClassVar[int] = 3
    OLDEST_VERSION: ClassVar[int] = 3

    models: list[ModelDiagnosis]
    text: str
    machine: str
    command: str
    version: str

    @property
    def figures(self) -> list[FigureSpec]:
        """The figures of all models; each is drawn for the models that have its series."""
        return merged_figures(model.shown.figures for model in self.models)

    @property
    def medium(self) -> str:
        """What the models were measured on, as a heading."""
        return "Images" if any(model.unit == "images" for model in self.models) else "Text"

    @property
    def headline(self) -> str:
        """One sentence about all models."""
        return "; ".join(map(_headline, self.models))

    @property
    def summary(self) -> str:
        """The headline."""
        return self.headline

    def parts(self) -> Iterator[RenderableType]:
        """The layers of each model with what the numbers come to, and where the report is."""
        for model in self.models:
            yield FittingTables(partial(layer_tables, model))
            yield from (Sentence(f"- {sentence}") for sentence in model.findings)
        if self.saved is not None:
            yield f"Report: {self.saved}"

    def rows(self) -> list[dict[str, Any]]:
        """A row for each layer of each model: its number in every series over layers, and the ends of the interval."""
        return [row for model in self.models for row in _layer_numbers(model)]

    def to_dict(self) -> dict[str, Any]:
        """All of it, as in `report.json`."""
        return json.loads(to_json(self))

    def _write(self, folder: Path) -> Path:
        """Write `report.json`, `figures/` (PNG and SVG) and `report.html`, and return the last one's path.

        The numbers are written first, so that they are safe if the rest fails. Figures of an earlier report
        are removed.
        """
        # matplotlib takes a second to import
        from mixln.report.depth_figures import draw_models
        from mixln.report.html import page_environment, spread, write_plots

        write_file(folder / REPORT_FILE, to_json(self))
        names = ", ".join(model.model for model in self.models)
        plots = write_plots(
            {spec.name: partial(draw_models, spec, self.models) for spec in self.figures},
            folder / "figures",
            {spec.name: f"{spec.title} of {names}" for spec in self.figures},
        )
        draws = "images" if self.medium == "Images" else "documents"
        meaning = f"are 95 % confidence intervals over {draws} (of scores: over items)."
        page = page_environment().get_template("diagnosis.html.jinja")
        text = page.render(
            result=self,
            figures=[
                (spec, spread(spec.form, meaning) if self._has_intervals(spec) else "", plots[spec.name])
                for spec in self.figures
                if spec.name in plots
            ],
            columns_of=shown_columns,
            rows_of=page_rows,
            table_rows_of=_labelled_rows,
            perplexity=cells.perplexity,
            duration=cells.duration,
            files=[REPORT_FILE, "figures/"],
        )
        return write_file(folder / "report.html", text)

    def _has_intervals(self, spec: FigureSpec) -> bool:
        series = [model.series[name] for model in self.models for name in spec.series if name in model.series]
        return any(estimate.interval for one in series for estimate in one.estimates)


def _layer_numbers(model: ModelDiagnosis) -> list[dict[str, Any]]:
    """The numbers of the layers of a model: of a series over states, those after the layer."""
    rows: list[dict[str, Any]] = [
        {"model": model.model, "layer": layer, "parameters": count, "dead": layer in model.dead_layers}
        for layer, count in enumerate(model.layer_parameters, start=1)
    ]
    for series in model.series.values():
        if series.axis not in ("layer", "state"):
            continue
        for place, estimate in zip(series.places, series.estimates, strict=True):
            if 1 <= place <= model.num_layers:
                rows[place - 1] |= interval_columns(series.name, estimate)
    return rows


def _headline(model: ModelDiagnosis) -> str:
    if not model.has_learned:
        return f"{model.model}: has not learned {model.to_be_learned}, so its {model.num_layers} layers get no verdict"
    if "removal" not in model.series:
        return f"{model.model}: {model.num_layers} layers, removals not measured"
    dead = len(model.dead_layers)
    return f"{model.model}: {dead} of {model.num_layers} layers {'is' if dead == 1 else 'are'} dead weight"


def shown_columns(model: ModelDiagnosis) -> list[ColumnSpec]:
    """The columns whose series were measured."""
    return [column for column in model.shown.columns if column.series in model.series]


def _labelled_rows(model: ModelDiagnosis, table: TableSpec) -> list[tuple[str, str, str]]:
    found = [(model.series[name], kind) for name, kind in table.series.items() if name in model.series]
    return [
        (label, kind, f"{value:.4g}")
        for series, kind in found
        for label, value in zip(series.labels or (), series.values, strict=True)
    ]


@dataclass(frozen=True)
class Cell:
    """A number in a table of layers: as it reads, its interval if it has one, and what to sort by (empty: missing)."""

    text: str
    interval: str
    value: str


@dataclass(frozen=True)
class LayerRow:
    """A row of the table of layers on a page."""

    layer: int
    cells: list[Cell]


def _estimates(model: ModelDiagnosis, column: ColumnSpec) -> list[Estimate]:
    """An estimate for each layer; of a series over states, that of the state after the layer."""
    series = model.series[column.series]
    found = dict(zip(series.places, series.estimates, strict=True))
    return [found.get(layer, Estimate(math.nan)) for layer in range(1, model.num_layers + 1)]


def _column_cells(model: ModelDiagnosis, column: ColumnSpec) -> list[str]:
    return [_cell(estimate.value, column.form) for estimate in _estimates(model, column)]


def page_rows(model: ModelDiagnosis, columns: Sequence[ColumnSpec]) -> list[LayerRow]:
    """A row for each layer, with the intervals of its numbers."""

    def cell(estimate: Estimate, form: str) -> Cell:
        ends = [_cell(end, form) for end in estimate.interval or ()]
        value = "" if math.isnan(estimate.value) else f"{estimate.value:.6g}".replace("inf", "Infinity")
        return Cell(_cell(estimate.value, form), f"[{', '.join(ends)}]" if ends else "", value)

    each = [[cell(estimate, column.form) for estimate in _estimates(model, column)] for column in columns]
    return [LayerRow(layer + 1, [column[layer] for column in each]) for layer in range(model.num_layers)]


def layer_rows(model: ModelDiagnosis, columns: Sequence[ColumnSpec]) -> list[list[str]]:
    """A row for each layer: its number, then a cell for each column."""
    numbers = [str(layer + 1) for layer in range(model.num_layers)]
    return [list(row) for row in zip(numbers, *(_column_cells(model, column) for column in columns), strict=True)]


def _cell(value: float, form: str) -> str:
    if value == math.inf:
        return "inf"
    if not math.isfinite(value):
        return cells.MISSING
    return cells.perplexity(value) if form == "perplexity" else fixed(value, form)


def layer_tables(model: ModelDiagnosis, width: int = 80) -> list[Table]:
    """The layers of a model for the terminal, then the scores; dead weight is dim and marked.

    Words and numbers stay whole: columns that do not fit into `width` characters go on in another table.
    """
    titles = {"layers": f"{model.model}: {model.kind}, {model.num_layers} layers", "scores": "harm to scores"}
    tables: list[Table] = []
    for place, title in titles.items():
        parts: list[list[ColumnSpec]] = []
        room = 0
        for column in shown_columns(model):
            if column.table != place:
                continue
            needed = _width(model, column) + 2  # for the gap before it
            if needed > room:
                parts.append([])
                room = width - 2 - len("layer")
            parts[-1].append(column)
            room -= needed
        tables += [_table(model, title, columns) for columns in parts]
    return tables


def _width(model: ModelDiagnosis, column: ColumnSpec) -> int:
    return max(map(cell_len, [*column.head.split(), *_column_cells(model, column)]))


def _table(model: ModelDiagnosis, title: str, columns: Sequence[ColumnSpec]) -> Table:
    table = plain_table(title, "* dead weight" if model.dead_layers else None)
    table.add_column("layer")
    for column in columns:
        # Text, not str: rich would read markup in the name of a score
        table.add_column(Text(column.head), justify="right", overflow="fold", width=_width(model, column))
    dead = set(model.dead_layers)
    for layer, row in enumerate(layer_rows(model, columns), start=1):
        first = f"{row[0]} *" if layer in dead else row[0]
        table.add_row(*map(Text, [first, *row[1:]]), style="dim" if layer in dead else "")
    return table
