"""The report as one self-contained HTML page: no script, no font, no file and no address outside itself."""

from __future__ import annotations

import base64
import re
from collections.abc import Mapping
from pathlib import Path

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup, escape

from mixln.report import cells
from mixln.report.aggregate import best_runs, depth_of
from mixln.report.figure_files import write_drawings
from mixln.report.figures import FIGURES, draw_figures
from mixln.report.headline import findings, headline
from mixln.report.results import ComparisonResult, RunResult
from mixln.report.serialize import to_json
from mixln.report.statistics import has_diverged
from mixln.report.style import scheme_styles
from mixln.report.tables import grid_cells, markdown_table, summary_cells, table_caption
from mixln.storage import write_file


def render_html(result: ComparisonResult, drawn: Mapping[str, bytes]) -> str:
    """The page as text; the same result gives the same text.

    Args:
        result: to show.
        drawn: SVG of the drawn figures, by name.
    """
    several = any(sum(not has_diverged(run) for run in runs) > 1 for runs in best_runs(result).values())
    figures = [(kind, kind.bands if several else "") for kind in FIGURES]
    several = any(len(runs) > 1 for runs in depth_of(result).values())
    reach = "reach from the lowest to the highest seed."
    figures += [(spec, spread(spec.form, reach) if several else "") for spec in result.depth_figures]
    template = page_environment().get_template("report.html.jinja")
    return template.render(
        result=result,
        headline=headline(result),
        findings=findings(result),
        summary=summary_cells(result),
        caption=table_caption(result),
        grid=grid_cells(result),
        figures=[(kind, bands, data_uri(drawn[kind.name])) for kind, bands in figures if kind.name in drawn],
        missing=[spec.title for spec in result.depth_figures if spec.name not in drawn],
        runs=[(has_diverged(run), _run_row(run)) for run in result.runs],
        styles=scheme_styles(result),
    )


def write_report(result: ComparisonResult, folder: str | Path) -> Path:
    """Write `results.json`, `table.md`, `figures/` (PNG and SVG) and `report.html`, and return the last one's path.

    The numbers are written first, so that they are safe if the rest fails. Figures of an earlier result that
    do not apply to this one are removed, so that the folder tells one story.

    Raises:
        InputError: a file cannot be written.
    """
    folder = Path(folder)
    write_file(folder / "results.json", to_json(result))
    write_file(folder / "table.md", markdown_table(result))
    drawn = write_drawings(draw_figures(result), folder / "figures")
    return write_file(folder / "report.html", render_html(result, drawn))


def page_environment() -> Environment:
    """Where the templates of pages are, and the filters that they use."""
    environment = Environment(
        loader=PackageLoader("mixln.report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"code": _code, "minus": _minus, "breakable": _breakable}
    return environment


def _run_row(run: RunResult) -> list[str]:
    return [
        run.placement,
        str(run.seed),
        cells.learning_rate(run.learning_rate),
        "diverged" if has_diverged(run) else cells.number(run.validation_loss, 4),
        _over_token_frequencies(run),
        cells.perplexity(None if has_diverged(run) else run.perplexity),
        cells.tokens(run.train_tokens),
        f"{run.tokens_per_second:,.0f}",
        cells.duration(run.seconds),
    ]


def _over_token_frequencies(run: RunResult) -> str:
    if run.over_token_frequencies is None:
        return cells.MISSING
    mark = "" if run.has_learned_order else ": has not learned word order"
    return run.over_token_frequencies.format("+.3f") + mark


def data_uri(svg: bytes) -> str:
    """An SVG figure as an address that holds it."""
    # an image of its own, so that the ids inside one figure cannot meet those of another
    return f"data:image/svg+xml;base64,{base64.b64encode(svg).decode()}"


def spread(form: str, meaning: str) -> str:
    """The sentence on the whiskers or bands of a form of figure; empty for forms that have neither."""
    drawn = {"bars": "Whiskers", "lines": "Bands"}.get(form)
    return f"{drawn} {meaning}" if drawn else ""


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
