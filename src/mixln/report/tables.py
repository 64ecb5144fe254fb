"""Tables of a comparison: for the terminal (rich), and for documents (Markdown)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from math import exp

from rich.box import SIMPLE_HEAD
from rich.table import Table
from rich.text import Text

from mixln.report import cells
from mixln.report.results import ComparisonResult, SchemeSummary
from mixln.report.statistics import best_summary, has_grid, is_told
from mixln.report.style import wrap_label

_BREAKS = " [", " diverged", " has not", " have not", " word order"
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
    """The summary as text; the column of differences only if there are any."""
    with_difference = any(summary.difference is not None for summary in result.summaries)
    header = ["scheme", "learning rate", "validation loss", "perplexity"]
    header += [cells.difference_header(result)] if with_difference else []
    header += ["seeds"]
    best = best_summary(result.summaries)
    rows: list[list[str]] = []
    for summary in result.summaries:
        row = [summary.placement, cells.learning_rate(summary.learning_rate)]
        row += [cells.loss(summary), cells.perplexity(summary.perplexity_mean)]
        if with_difference:
            is_baseline = summary.placement == result.baseline
            row.append("baseline" if is_baseline else cells.difference(summary.difference))
        row.append(_seeds(summary))
        rows.append(row)
    index = next((i for i, summary in enumerate(result.summaries) if summary is best and is_told(result)), None)
    constants = _constant_rows(result, lambda name, loss: [name, "", cells.number(loss), cells.perplexity(exp(loss))])
    rows += [[*row, *[""] * (len(header) - len(row))] for row in constants]
    return Cells(header, rows, index, [set() for _ in rows], len(constants))


def _seeds(summary: SchemeSummary) -> str:
    """How many seeds there are, and what is the matter with some."""
    count = str(summary.seeds)
    have = "has" if summary.without_order == 1 else "have"
    wrong = {"diverged": summary.diverged, f"{have} not learned word order": summary.without_order}
    parts = [f"{number} of {count} {what}" for what, number in wrong.items() if number]
    return ", ".join(parts) or count


def _constant_rows(result: ComparisonResult, row: Callable[[str, float], list[str]]) -> list[list[str]]:
    """A row for each loss that a model must beat."""
    return [] if result.constants is None else [row(*one) for one in result.constants.losses.items()]


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
    constants = _constant_rows(result, lambda name, loss: [name, *[cells.number(loss)] * len(rates)])
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
    parts = ["Loss in nats per token"]
    if any(summary.loss_spread is not None for summary in result.summaries):
        parts.append("± sample standard deviation over seeds")
    if any(summary.difference is not None for summary in result.summaries):
        parts.append("differences are paired by seed, negative is better")
    if any(summary.diverged for summary in result.summaries):
        parts.append("means leave out diverged runs")
    if (constants := result.constants) is not None:
        parts.append(
            f"token frequencies and pairs: the loss of knowing only these, counted on {constants.counted_tokens:,} of "
            f"{constants.train_tokens:,} training tokens"
        )
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
