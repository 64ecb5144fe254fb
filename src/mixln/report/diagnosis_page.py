"""A diagnosis as one self-contained HTML page, and everything of it on disk."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from mixln.files import remove_file, write_file
from mixln.report import cells
from mixln.report.diagnosis import REPORT_FILE, DepthReport, ModelDiagnosis, NormScaleResult
from mixln.report.diagnosis_figures import FIGURES, DiagnosisFigure
from mixln.report.diagnosis_summary import (
    LayerColumn,
    dead_layers,
    findings,
    headline,
    layer_columns,
    layer_rows,
)
from mixln.report.figures import draw_png, draw_svg
from mixln.report.html import data_uri, page_environment
from mixln.report.serialize import to_json

_PNG_DPI = 150


@dataclass(frozen=True)
class _Figure:
    kind: DiagnosisFigure
    source: str


@dataclass(frozen=True)
class _Model:
    result: ModelDiagnosis
    findings: list[str]
    dead: set[int]
    columns: list[LayerColumn]
    rows: list[list[str]]
    norms: list[NormScaleResult]
    perplexity: str
    duration: str


def render_diagnosis(report: DepthReport, drawn: dict[str, bytes]) -> str:
    """The page as text.

    Args:
        report: what to show.
        drawn: SVG of the figures by name.
    """
    return (
        page_environment()
        .get_template("diagnosis.html.jinja")
        .render(
            report=report,
            headline=headline(report),
            models=[_model(model) for model in report.models],
            figures=[_Figure(kind, data_uri(drawn[kind.name])) for kind in FIGURES if kind.name in drawn],
        )
    )


def _model(model: ModelDiagnosis) -> _Model:
    columns = layer_columns(model)
    perplexity = model.series.get("perplexity")
    return _Model(
        model,
        findings(model),
        set(dead_layers(model)),
        columns,
        layer_rows(model, columns),
        model.norm_scales,
        "" if perplexity is None else cells.perplexity(perplexity.values[0]),
        cells.duration(model.seconds),
    )


def write_diagnosis(report: DepthReport, folder: Path) -> Path:
    """Write `report.json`, `figures/` (PNG and SVG) and `report.html`, and return the last one's path.

    The numbers are written first, so that they are safe whatever becomes of the rest.

    Raises:
        InputError: a file cannot be written.
    """
    write_file(folder / REPORT_FILE, to_json(report))
    drawn: dict[str, bytes] = {}
    for kind in FIGURES:
        for suffix in ("png", "svg"):  # of an earlier report
            remove_file(folder / "figures" / f"{kind.name}.{suffix}")
        if kind.applies(report):
            figure = kind.draw(report)
            drawn[kind.name] = draw_svg(figure, kind.name)
            write_file(folder / "figures" / f"{kind.name}.svg", drawn[kind.name])
            figure.set_dpi(_PNG_DPI)
            write_file(folder / "figures" / f"{kind.name}.png", draw_png(figure))
    return write_file(folder / "report.html", render_diagnosis(report, drawn))
