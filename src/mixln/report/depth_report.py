"""Diagnoses side by side: headline, tables for a terminal, page, and all of it on disk (docs/diagnose.md)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from rich.box import SIMPLE_HEAD
from rich.table import Table
from rich.text import Text

from mixln.report import cells
from mixln.report.diagnosis import ModelDiagnosis
from mixln.report.serialize import to_json
from mixln.report.series import ColumnSpec, FigureSpec, TableSpec, merged_figures
from mixln.storage import write_file

REPORT_FILE = "report.json"


@dataclass(frozen=True)
class DepthReport:
    """Diagnoses side by side, on the same text.

    Attributes:
        models: one for each.
        text: where the text is from.
        machine: that it was measured on.
        command: the command line; empty from Python.
        version: of mixln.
    """

    SCHEMA_VERSION: ClassVar[int] = 3

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
    def headline(self) -> str:
        """One sentence about all models."""
        return "; ".join(map(_headline, self.models))

    def save(self, folder: str | Path) -> Path:
        """Write `report.json`, `figures/` (PNG and SVG) and `report.html`, and return the last one's path.

        The numbers are written first, so that they are safe if the rest fails. Figures of an earlier report
        are removed.

        Raises:
            InputError: a file cannot be written.
        """
        # matplotlib takes a second to import
        from mixln.report.depth_figures import draw_models
        from mixln.report.figure_files import write_drawings

        folder = Path(folder)
        write_file(folder / REPORT_FILE, to_json(self))
        drawings = ((spec.name, draw_models(spec, self.models)) for spec in self.figures)
        return write_file(folder / "report.html", self._page(write_drawings(drawings, folder / "figures")))

    def _page(self, drawn: dict[str, bytes]) -> str:
        from mixln.report.html import data_uri, page_environment

        template = page_environment().get_template("diagnosis.html.jinja")
        models = [
            {
                "result": model,
                "columns": shown_columns(model),
                "rows": layer_rows(model, shown_columns(model)),
                "tables": [_rows_of(table, model) for table in model.shown.tables],
                "perplexity": cells.perplexity(_only(model, "perplexity")),
                "duration": cells.duration(model.seconds),
            }
            for model in self.models
        ]
        figures = [(spec, data_uri(drawn[spec.name])) for spec in self.figures if spec.name in drawn]
        return template.render(report=self, models=models, figures=figures)


def _only(model: ModelDiagnosis, name: str) -> float | None:
    return model.series[name].values[0] if name in model.series else None


def _headline(model: ModelDiagnosis) -> str:
    if "removal" not in model.series:
        return f"{model.model}: {model.num_layers} layers, removals not measured"
    dead = len(model.dead_layers)
    return f"{model.model}: {dead} of {model.num_layers} layers {'is' if dead == 1 else 'are'} dead weight"


def shown_columns(model: ModelDiagnosis) -> list[ColumnSpec]:
    """The columns whose series were measured."""
    return [column for column in model.shown.columns if column.series in model.series]


def _rows_of(table: TableSpec, model: ModelDiagnosis) -> tuple[TableSpec, list[tuple[str, str, str]]]:
    found = [(model.series[name], kind) for name, kind in table.series.items() if name in model.series]
    return table, [
        (label, kind, f"{value:.4g}")
        for series, kind in found
        for label, value in zip(series.labels or (), series.values, strict=True)
    ]


def layer_rows(model: ModelDiagnosis, columns: Sequence[ColumnSpec]) -> list[list[str]]:
    """A row for each layer: its number, then a cell for each column."""
    series = [model.series[column.series] for column in columns]
    # of the states, what the layer gives, as in the figures: the embeddings have no row
    values = [one.values[1:] if one.axis == "state" else one.values for one in series]
    return [
        [
            str(index + 1),
            *(
                _cell(own[index] if index < len(own) else math.nan, column.form)
                for own, column in zip(values, columns, strict=True)
            ),
        ]
        for index in range(model.num_layers)
    ]


def _cell(value: float, form: str) -> str:
    if value == math.inf:
        return "inf"
    if not math.isfinite(value):
        return cells.MISSING
    return cells.perplexity(value) if form == "perplexity" else f"{value:{form}}"


def layer_tables(model: ModelDiagnosis) -> list[Table]:
    """The layers of a model for the terminal, scores in a second table; dead weight is dim and marked."""
    title = f"{model.model}: {model.kind}, {model.num_layers} layers"
    titles: dict[str, str] = {"layers": title, "scores": "harm to scores"}
    columns = {place: [one for one in shown_columns(model) if one.table == place] for place in titles}
    return [_table(model, titles[place], own) for place, own in columns.items() if own]


def _table(model: ModelDiagnosis, title: str, columns: Sequence[ColumnSpec]) -> Table:
    table = Table(title=title, box=SIMPLE_HEAD, title_justify="left")
    table.add_column("layer")
    for column in columns:
        # Text, not str: rich would read markup in the name of a score
        table.add_column(Text(column.head), justify="right", overflow="fold")
    dead = set(model.dead_layers)
    for layer, row in enumerate(layer_rows(model, columns), start=1):
        first = f"{row[0]} *" if layer in dead else row[0]
        table.add_row(*map(Text, [first, *row[1:]]), style="dim" if layer in dead else "")
    if dead:
        table.caption = "* dead weight"
        table.caption_justify = "left"
    return table
