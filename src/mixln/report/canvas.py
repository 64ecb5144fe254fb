"""The common look of the figures: sizes, axes, legends, notes. Object-oriented matplotlib, no global state."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullLocator

from mixln.report import cells
from mixln.report.style import SchemeStyle

WIDTH = 9.0
"""Width of every figure in inches; with font size 9 it reads well at full width of a page."""

INK = "#22262B"
FAINT = "#8A9199"
GRID = "#E3E6E9"


def panels(rows: int, columns: int, height: float, width: float = WIDTH, **options: Any) -> tuple[Figure, list[Axes]]:
    """A figure of `rows` x `columns` styled axes in reading order, `height` inches tall and `width` wide."""
    figure = Figure(figsize=(width, height), layout="constrained", facecolor="white")
    axes = list(figure.subplots(rows, columns, squeeze=False, **options).flat)
    for ax in axes:
        style_axes(ax)
    return figure, axes


def style_axes(ax: Axes) -> None:
    """Light horizontal grid, no box, small grey ticks."""
    ax.spines[["top", "right"]].set_visible(False)
    ax.spines[["left", "bottom"]].set_color(FAINT)
    ax.tick_params(colors=INK, labelsize=8.5, color=FAINT, length=3)
    ax.tick_params(which="minor", length=0)
    ax.grid(axis="y", color=GRID, linewidth=0.8)
    ax.set_axisbelow(True)


def label_axes(ax: Axes, x: str, y: str) -> None:
    """Names the axes; the vertical one in the horizontal, above it, where it is read without a turn of the head."""
    ax.set_xlabel(x, fontsize=9, color=INK)
    ax.set_title(y, loc="left", fontsize=9, color=INK, pad=8)


def panel_title(ax: Axes, label: str) -> None:
    """The label of a panel, at its upper left; dollar signs in it are no mathematics."""
    ax.set_title(label, fontsize=9, loc="left", color=INK, parse_math=False)


def layer_axis(ax: Axes, first: int, last: int) -> None:
    """Whole layer numbers on the horizontal axis, with half a layer of room at each side."""
    ax.set_xlim(first - 0.6, last + 0.6)
    ax.set_xticks(layer_ticks(first, last, most=13))


def layer_ticks(first: int, last: int, most: int) -> list[int]:
    """At most about `most` layer numbers: the first one, then multiples of a round step."""
    step = next((step for step in (1, 4, 5, 10, 20, 50, 100) if last <= step * most), last)
    return [first, *range(max(step, first + 1), last + 1, step)]


def token_axis(ax: Axes) -> None:
    """Token counts in short form (`10M`)."""
    ax.xaxis.set_major_locator(MaxNLocator(nbins=6))
    ax.xaxis.set_major_formatter(FuncFormatter(lambda value, _: cells.tokens(value)))


def log_y(ax: Axes) -> None:
    """A logarithmic vertical axis, labelled with plain numbers: at powers of ten, over few decades between them too."""
    ax.set_yscale("log")
    low, high = ax.get_ylim()
    ax.yaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0) if high / low < 300 else (1.0,)))
    ax.yaxis.set_minor_locator(NullLocator())
    ax.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))


def line_options(style: SchemeStyle, points: int) -> dict[str, Any]:
    """Line, colour and marker of a scheme; markers only where there is room for them."""
    options: dict[str, Any] = {"color": style.color, "linestyle": style.line, "linewidth": 1.7}
    if points <= 45:
        options |= {"marker": style.marker, "markersize": 4 if points <= 25 else 3, "markeredgewidth": 0}
    return options


def legend(figure: Figure, handles: Sequence[Artist], labels: Sequence[str]) -> None:
    """One legend under the figure, in as many columns as the longest label allows."""
    if not labels:
        return
    longest = max(map(len, labels))
    columns = max(1, min(len(labels), int(WIDTH * 15.5 / (longest + 7))))
    drawn = figure.legend(
        handles,
        labels,
        loc="outside lower center",
        ncols=columns,
        fontsize=8.5,
        frameon=False,
        labelcolor=INK,
        handlelength=2.6,
    )
    for text in drawn.get_texts():
        text.set_parse_math(False)


def legend_rows(labels: Sequence[str]) -> float:
    """Inches that `legend` takes, so that the axes keep their height whatever the number of schemes."""
    if not labels:
        return 0.0
    columns = max(1, min(len(labels), int(WIDTH * 15.5 / (max(map(len, labels)) + 7))))
    return 0.19 * -(-len(labels) // columns) + 0.1


def note(figure: Figure, text: str) -> None:
    """A remark under the figure's title line, at its upper right."""
    if text:
        figure.suptitle(text, x=0.995, ha="right", fontsize=8, color=FAINT, style="italic", wrap=True)


def left_out(placements: Sequence[str]) -> str:
    """The remark that some schemes are missing from a figure."""
    return f"not measured: {', '.join(placements)}" if placements else ""
