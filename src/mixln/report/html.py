"""The report as one self-contained HTML page: no script, no font, no file and no address outside itself."""

from __future__ import annotations

import base64
import re
from dataclasses import dataclass
from pathlib import Path

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup, escape

from mixln.files import write_file
from mixln.report import cells
from mixln.report.figures import FIGURES, FigureKind, svg_figures
from mixln.report.headline import findings, headline
from mixln.report.results import ComparisonResult, RunResult
from mixln.report.statistics import has_diverged
from mixln.report.style import scheme_styles
from mixln.report.tables import grid_cells, summary_cells, table_caption


@dataclass(frozen=True)
class _Figure:
    kind: FigureKind
    source: str


def render_html(result: ComparisonResult) -> str:
    """The page as text; the same result gives the same text."""
    drawn = svg_figures(result)
    return (
        page_environment()
        .get_template("report.html.jinja")
        .render(
            result=result,
            headline=headline(result),
            findings=findings(result),
            summary=summary_cells(result),
            caption=table_caption(result),
            grid=grid_cells(result),
            figures=[_Figure(kind, data_uri(drawn[kind.name])) for kind in FIGURES if kind.name in drawn],
            missing=[kind.title for kind in FIGURES if kind.needs_depth and kind.name not in drawn],
            runs=[(has_diverged(run), _run_row(run)) for run in result.runs],
            styles=scheme_styles(result),
        )
    )


def page_environment() -> Environment:
    """Where the templates of pages are, and the filters that they use."""
    environment = Environment(
        loader=PackageLoader("mixln.report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["code"] = _code
    environment.filters["minus"] = _minus
    environment.filters["breakable"] = _breakable
    return environment


def write_html(result: ComparisonResult, path: Path) -> Path:
    """Write the page whole or not at all, and return its path.

    Raises:
        InputError: it cannot be written.
    """
    return write_file(path, render_html(result))


def _run_row(run: RunResult) -> list[str]:
    return [
        run.placement,
        str(run.seed),
        cells.learning_rate(run.learning_rate),
        "diverged" if has_diverged(run) else cells.number(run.validation_loss, 4),
        cells.perplexity(None if has_diverged(run) else run.perplexity),
        cells.tokens(run.train_tokens),
        f"{run.tokens_per_second:,.0f}",
        cells.duration(run.seconds),
    ]


def data_uri(svg: bytes) -> str:
    """An SVG figure as an address that holds it."""
    # an image of its own, so that the ids inside one figure cannot meet those of another
    return f"data:image/svg+xml;base64,{base64.b64encode(svg).decode()}"


def _minus(text: str) -> str:
    """Typeset the hyphen in front of a number as a minus, as wide as a plus; `1e-3` stays what one would type."""
    return re.sub(r"(?<![\w-])-(?=\d)", "\N{MINUS SIGN}", text)


def _breakable(label: str) -> Markup:
    """Let a scheme's label break before each modifier, and nowhere else."""
    return Markup("<wbr>+").join(label.split("+"))


def _code(text: str) -> Markup:
    """Turn `backticks` into <code>, everything else escaped."""
    parts = re.split(r"`([^`]*)`", text)
    return Markup("").join(
        Markup("<code>{}</code>").format(part) if index % 2 else escape(_minus(part))
        for index, part in enumerate(parts)
    )
