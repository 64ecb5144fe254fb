"""The report as one self-contained HTML page: it fetches nothing, and the files that it links to lie beside it."""

from __future__ import annotations

import base64
import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from hashlib import sha256
from pathlib import Path
from urllib.parse import quote

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup, escape

from mixln.report import cells
from mixln.report.aggregate import best_runs, depth_of
from mixln.report.drawing import Draw
from mixln.report.figure_files import write_drawings
from mixln.report.figures import FigureKind, described, draw_figures, figures_of
from mixln.report.headline import findings, headline
from mixln.report.page_figures import Plot, draw_plot, page_color
from mixln.report.results import ComparisonResult, RunResult
from mixln.report.serialize import RESULTS_FILE, to_json
from mixln.report.series import FigureSpec
from mixln.report.shown_names import with_shown_names
from mixln.report.statistics import has_diverged
from mixln.report.step_tables import (
    change_caption,
    change_cells,
    difference_caption,
    difference_cells,
    step_caption,
    step_cells,
    step_findings,
    step_markdown,
)
from mixln.report.style import LineStyle, scheme_styles
from mixln.report.tables import grid_cells, markdown_table, summary_cells, table_caption
from mixln.storage import write_file


def render_html(
    result: ComparisonResult, plots: Mapping[str, Plot], files: Sequence[str], run_folders: Collection[str] = ()
) -> str:
    """The page as text; the same result gives the same text.

    Args:
        result: to show.
        plots: the drawn figures, by name.
        files: that lie beside the page, to be linked to.
        run_folders: of runs, beside the page too.
    """
    several = any(sum(not has_diverged(run) for run in runs) > 1 for runs in best_runs(result).values())
    figures: list[tuple[FigureKind | FigureSpec, str]] = []
    for kind in figures_of(result):
        shows, levels = described(kind, result)
        figures.append((replace(kind, shows=shows), " ".join(filter(None, [levels, kind.bands if several else ""]))))
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
        figures=[(kind, bands, plots[kind.name]) for kind, bands in figures if kind.name in plots],
        missing=[spec.title for spec in result.depth_figures if spec.name not in plots],
        run_columns=[*_run_cells(result, result.runs[0])] if result.runs else ["scheme"],
        runs=[
            (has_diverged(run), run.folder if run.folder in run_folders else None, [*_run_cells(result, run).values()])
            for run in result.runs
        ],
        styles=scheme_styles(result),
        files=files,
        steps=[
            {
                "result": step,
                "cells": step_cells(step),
                "caption": step_caption(step),
                "differences": difference_cells(step, result.baseline),
                "difference_caption": difference_caption(step, result.baseline or ""),
                "changes": change_cells(step),
                "change_caption": change_caption(step),
                "findings": step_findings(result.then, number, result.baseline),
            }
            for number, step in enumerate(result.then)
        ],
    )


def write_report(result: ComparisonResult, folder: str | Path) -> Path:
    """Write `results.json`, `table.md`, `figures/` (PNG and SVG) and `report.html`, and return the last one's path.

    The numbers are written first, so that they are safe if the rest fails. Figures of an earlier result that
    do not apply to this one are removed, so that the folder tells one story.

    Raises:
        InputError: a file cannot be written.
    """
    folder = Path(folder)
    write_file(folder / RESULTS_FILE, to_json(result))
    result = with_shown_names(result)
    steps = "".join(f"\n{step_markdown(step, result.baseline)}" for step in result.then)
    write_file(folder / "table.md", markdown_table(result) + steps)
    titles = {kind.name: kind.title for kind in figures_of(result)} | {
        spec.name: spec.title for spec in result.depth_figures
    }
    names = ", ".join(summary.placement for summary in result.summaries)
    shown = {name: f"{title} of {names}" for name, title in titles.items()}
    plots = write_plots(dict(draw_figures(result)), folder / "figures", shown)
    files = [RESULTS_FILE, "table.md", "figures/", *(["runs/"] if (folder / "runs").is_dir() else [])]
    run_folders = {run.folder for run in result.runs if run.folder and (folder / run.folder).is_dir()}
    return write_file(folder / "report.html", render_html(result, plots, files, run_folders))


def write_plots(draws: Mapping[str, Draw], folder: Path, titles: Mapping[str, str]) -> dict[str, Plot]:
    """Write figures by name, as `write_drawings` does, and return them as a page shows them.

    Args:
        draws: what draws them.
        folder: to write to.
        titles: what each shows, for those who do not see it.

    Raises:
        InputError: a file cannot be written or removed.
    """
    drawn = write_drawings(draws.items(), folder)
    return {
        name: draw_plot(name, draws[name], drawing, f"{titles[name]}. The numbers can be copied below.")
        for name, drawing in drawn.items()
    }


def page_environment() -> Environment:
    """Where the templates of pages are, and the filters that they use."""
    environment = Environment(
        loader=PackageLoader("mixln.report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "code": _code,
        "minus": _minus,
        "breakable": _breakable,
        "relative": _relative,
        "dashes": _dashes,
        "page_color": page_color,
    }
    script = Path(__file__).with_name("templates").joinpath("page.js").read_text(encoding="utf-8")
    digest = base64.b64encode(sha256(script.encode()).digest()).decode()
    # the page allows this script by its hash, and no other
    environment.globals |= {"script": Markup(script), "script_hash": f"sha256-{digest}"}
    return environment


_Cell = tuple[str, float | None]
"""A text, and the number to sort by where the text does not begin with it."""


def _run_cells(result: ComparisonResult, run: RunResult) -> dict[str, _Cell]:
    """The cells of a run by the heads of their columns."""
    terms, over, is_lost = result.terms, run.over_constant, has_diverged(run)
    found: dict[str, _Cell] = {
        "scheme": (run.placement, None),
        "seed": (str(run.seed), None),
        "learning rate": (cells.learning_rate(run.learning_rate), None),
        "validation loss": ("diverged" if is_lost else cells.number(run.validation_loss, 4), None),
        f"to {terms.constant} [95 % CI]": (_over_constant(result, run), None if over is None else over.value),
    }
    if terms.has_perplexity:
        found["perplexity"] = (cells.perplexity(None if is_lost else run.perplexity), None)
    for quantity in result.quantities:
        text = cells.percents(run.values.get(quantity.name)).replace(" [", "\n[")
        found[f"{quantity.label or quantity.name}, % [95 % CI]"] = (text, None)
    return found | {
        terms.unit: (cells.tokens(run.train_tokens), run.train_tokens),
        f"{terms.unit}/s": (f"{run.tokens_per_second:,.0f}", None),
        "training time": (cells.duration(run.seconds), run.seconds),
    }


def _over_constant(result: ComparisonResult, run: RunResult) -> str:
    """The difference; in lines below it the interval, and whether the run is no better than the constants."""
    if run.over_constant is None:
        return cells.MISSING
    number, *interval = run.over_constant.format("+.3f").split(" ", 1)
    return "\n".join([number, *interval, *([] if run.has_learned else [f"has not {result.terms.learned}"])])


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


def _relative(path: str) -> str:
    """The address of a file that lies beside the page, or in a folder there."""
    return f"./{quote(path)}"


def _dashes(line: LineStyle) -> str:
    """The pattern of a line, as SVG says it; empty for a line without gaps."""
    if isinstance(line, str):
        return {"--": "7 3", ":": "2 3", "-.": "7 3 2 3"}.get(line, "")
    return " ".join(f"{2 * part:g}" for part in line[1])
