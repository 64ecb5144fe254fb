"""Tables of a comparison: for the terminal (rich), and for documents (Markdown)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import exp

from rich.box import SIMPLE_HEAD
from rich.table import Table
from rich.text import Text

from mixln.report import cells
from mixln.report.results import ComparisonResult, SchemeSummary
from mixln.report.statistics import best_summary, has_grid, is_told
from mixln.report.step_results import Quantity
from mixln.report.style import wrap_label

_BREAKS = " [", " diverged", " has not", " have not", " word order", " to tell"
"""Where a cell of the terminal may go on in another line, which begins with these words."""


@dataclass(frozen=True)
class Cells:
    """A table as text, before any layout.

    Attributes:
        header: column heads; the first column holds schemes, all others numbers.
        rows: one list of cells for each scheme, then one for each constant.
        best: index of the row to highlight, or None: a row is highlighted only if it can be told to be best.
        emphasis: for each row, indices of cells to emphasise (a scheme's best learning rate).
        num_constants: how many rows at the end are no schemes.
    """

    header: list[str]
    rows: list[list[str]]
    best: int | None
    emphasis: list[set[int]]
    num_constants: int = 0


def summary_cells(result: ComparisonResult) -> Cells:
    """The summary as text; the columns of differences only if there are any."""
    with_difference = any(summary.difference is not None for summary in result.summaries)
    differing = {value.quantity for value in result.values if value.difference is not None}
    told = [one for one in result.quantities[:1] if one.name in differing]  # the others' would not fit
    header = ["scheme", "learning rate", "validation loss", *(["perplexity"] if result.terms.has_perplexity else [])]
    header += [f"{_label(one)} [%]" for one in result.quantities]
    header += [cells.difference_header(result)] if with_difference else []
    header += [f"{_label(one)} to {result.baseline} [points]" for one in told]
    header += ["seeds"]
    best = best_summary(result.summaries)
    rows: list[list[str]] = []
    for summary in result.summaries:
        row = [summary.placement, cells.learning_rate(summary.learning_rate), cells.loss(summary)]
        row += [cells.perplexity(summary.perplexity_mean)] if result.terms.has_perplexity else []
        row += [_value(result, summary, one.name) for one in result.quantities]
        is_baseline = summary.placement == result.baseline
        if with_difference:
            row.append("baseline" if is_baseline else cells.difference(summary.difference))
        for one in told:
            found = result.value_of(summary.placement, one.name)
            difference = None if found is None else found.difference
            row.append("baseline" if is_baseline else cells.percents(difference, "+.2f"))
        row.append(_seeds(summary, result.terms.learned))
        rows.append(row)
    index = next((i for i, summary in enumerate(result.summaries) if summary is best and is_told(result)), None)
    constants = [
        [name, "", cells.number(loss), *([cells.perplexity(exp(loss))] if result.terms.has_perplexity else [])]
        + [cells.percent(values[one.name]) if one.name in values else "" for one in result.quantities]
        for name, loss, values in _constants(result)
    ]
    rows += [[*row, *[""] * (len(header) - len(row))] for row in constants]
    return Cells(header, rows, index, [set() for _ in rows], len(constants))


def _label(quantity: Quantity) -> str:
    return quantity.label or quantity.name


def _value(result: ComparisonResult, summary: SchemeSummary, quantity: str) -> str:
    """A share in percent: with its spread over seeds, or of a single seed with its interval over images."""
    found = result.value_of(summary.placement, quantity)
    if found is None:
        return cells.MISSING
    if found.deviation is not None:
        return f"{cells.percent(found.mean)} ± {cells.percent(found.deviation)}"
    at = summary.placement, summary.learning_rate
    runs = (run for run in result.runs if (run.placement, run.learning_rate) == at and quantity in run.values)
    return cells.percents(next((run.values[quantity] for run in runs), None))


def _seeds(summary: SchemeSummary, learned: str) -> str:
    """How many seeds there are, and what is the matter with some."""
    count = str(summary.seeds)
    have = "has" if summary.without_order == 1 else "have"
    wrong = {"diverged": summary.diverged, f"{have} not {learned}": summary.without_order}
    parts = [f"{number} of {count} {what}" for what, number in wrong.items() if number]
    return ", ".join(parts) or count


def _constants(result: ComparisonResult) -> list[tuple[str, float, dict[str, float]]]:
    """Name, loss and other values of each constant that a model must beat."""
    if (found := result.to_beat) is None:
        return []
    return [(name, loss, found.values.get(name, {})) for name, loss in found.losses.items()]


def grid_cells(result: ComparisonResult) -> Cells | None:
    """Mean validation loss by scheme and learning rate as text; None if every scheme had one rate."""
    if not has_grid(result):
        return None
    rates = cells.learning_rates(result)
    points = {(point.placement, point.learning_rate): point for point in result.grid}
    rows: list[list[str]] = []
    emphasis: list[set[int]] = []
    for summary in result.summaries:
        row = [summary.placement]
        for rate in rates:
            point = points.get((summary.placement, rate))
            row.append("" if point is None else "diverged" if point.loss_mean is None else f"{point.loss_mean:.3f}")
        rows.append(row)
        emphasis.append({1 + rates.index(summary.learning_rate)} if summary.learning_rate in rates else set())
    constants = [[name, *[cells.number(loss)] * len(rates)] for name, loss, _ in _constants(result)]
    emphasis += [set() for _ in constants]
    header = ["scheme", *map(cells.learning_rate, rates)]
    return Cells(header, rows + constants, None, emphasis, len(constants))


def summary_table(result: ComparisonResult) -> Table:
    """The comparison for the terminal: one row per scheme at its best learning rate, the best row highlighted."""
    content = summary_cells(result)
    # a label is too long for the head of a narrow column, and a row says which scheme is the baseline
    header = [name.replace(f"to {result.baseline}", "to baseline") for name in content.header]
    return _rich(replace(content, header=header), "Validation loss by scheme", table_caption(result))


def grid_table(result: ComparisonResult) -> Table | None:
    """Mean validation loss by learning rate for the terminal; None if every scheme had one rate."""
    grid = grid_cells(result)
    return None if grid is None else _rich(grid, "Validation loss by learning rate", "bold: the scheme's best")


def markdown_table(result: ComparisonResult) -> str:
    """The summary, and the grid if there is one, as Markdown for documents; the best row and cells are bold."""
    parts = [markdown(summary_cells(result)), f"{table_caption(result)}."]
    if (grid := grid_cells(result)) is not None:
        parts += ["Validation loss by learning rate:", markdown(grid)]
    return "\n\n".join(parts) + "\n"


def table_caption(result: ComparisonResult) -> str:
    """How to read the summary, in a line without a full stop."""
    parts = [f"Loss in {result.terms.loss}"]
    if result.quantities and any(summary.seeds == 1 for summary in result.summaries):
        names = ", ".join(_label(one) for one in result.quantities)
        parts.append(f"{names} of one seed with the 95 % interval over {result.terms.documents}")
    if any(summary.loss_spread is not None for summary in result.summaries):
        parts.append("± sample standard deviation over seeds")
    if any(summary.difference is not None for summary in result.summaries):
        parts.append(f"differences are paired by seed, negative {'loss ' if result.quantities else ''}is better")
    if any(summary.diverged for summary in result.summaries):
        parts.append("means leave out diverged runs")
    if (constants := result.to_beat) is not None:
        parts.append(constants.caption)
    return "; ".join(parts)


def plain_table(title: str, caption: str | None = None) -> Table:
    """An empty table for the terminal, with no more than two spaces between columns."""
    table = Table(title=title, caption=caption, title_justify="left", caption_justify="left", box=SIMPLE_HEAD)
    table.pad_edge, table.collapse_padding = False, True
    return table


def _folded(cell: str) -> str:
    for break_before in _BREAKS:
        cell = cell.replace(break_before, f"\n{break_before.lstrip()}")
    return cell


def _rich(content: Cells, title: str, caption: str) -> Table:
    table = plain_table(title, caption)
    if len(content.header) > 5:
        table.padding = 0
    for index, name in enumerate(content.header):
        # Schemes and losses keep their lines; other cells have words that are short enough for 80 columns. Text, not
        # str: rich would read markup in a label.
        head = Text(name.replace(" [", "\n[") if "[" in name else name.replace(" ", "\n"))
        table.add_column(head, justify="right" if index else "left", overflow="fold", no_wrap=index in (0, 2))
    for index, (row, emphasis) in enumerate(zip(content.rows, content.emphasis, strict=True)):
        texts = [
            wrap_label(row[0], 24),
            *map(_folded, row[1:]),
        ]
        styled = [Text(text, style="bold" if column in emphasis else "") for column, text in enumerate(texts)]
        table.add_row(*styled, style="bold green" if index == content.best else None)
    return table


def markdown(content: Cells) -> str:
    """A table as Markdown, with schemes as code."""
    lines = [_markdown_row(content.header), "| --- |" + " ---: |" * (len(content.header) - 1)]
    for index, (row, emphasis) in enumerate(zip(content.rows, content.emphasis, strict=True)):
        # A label such as `mix(post_layers=2)` holds underscores, which Markdown reads as emphasis outside code.
        is_scheme = index < len(content.rows) - content.num_constants
        texts = [f"`{row[0]}`" if is_scheme else row[0], *row[1:]]
        bold = range(len(row)) if index == content.best else emphasis
        lines.append(_markdown_row([f"**{text}**" if i in bold and text else text for i, text in enumerate(texts)]))
    return "\n".join(lines)


def _markdown_row(texts: Sequence[str]) -> str:
    return "| " + " | ".join(text.replace("|", "\\|") for text in texts) + " |"
