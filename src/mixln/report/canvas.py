"""The common look of the figures: sizes, axes, legends, notes. Object-oriented matplotlib, no global state."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullLocator

from mixln.report import cells
from mixln.report.aggregate import Band
from mixln.report.style import SchemeStyle

WIDTH = 9.0
"""Width of every figure in inches; with font size 9 it reads well at full width of a page."""

INK = "#22262B"
FAINT = "#8A9199"
GRID = "#E3E6E9"


def panels(
    rows: int,
    columns: int,
    height: float,
    width: float = WIDTH,
    *,
    legend: Mapping[str, Artist] | None = None,
    sharey: bool = False,
) -> tuple[Figure, list[Axes]]:
    """A figure of `rows` x `columns` axes in reading order, `height` inches tall without its legend and `width` wide.

    The axes have a light horizontal grid, no box, and small grey ticks. The legend is under them, in as many columns
    as the longest label allows.
    """
    legend_columns = 1
    if legend:
        legend_columns = max(1, min(len(legend), int(WIDTH * 15.5 / (max(map(len, legend)) + 7))))
        height += 0.19 * -(-len(legend) // legend_columns) + 0.1
    figure = Figure(figsize=(width, height), layout="constrained", facecolor="white")
    axes = list(figure.subplots(rows, columns, squeeze=False, sharey=sharey).flat)
    for ax in axes:
        ax.spines[["top", "right"]].set_visible(False)
        ax.spines[["left", "bottom"]].set_color(FAINT)
        ax.tick_params(colors=INK, labelsize=8.5, color=FAINT, length=3)
        ax.tick_params(which="minor", length=0)
        ax.grid(axis="y", color=GRID, linewidth=0.8)
        ax.set_axisbelow(True)
        for axis in (ax.xaxis, ax.yaxis):
            axis.label.set(size=9, color=INK)
    if legend:
        look = {"fontsize": 8.5, "frameon": False, "labelcolor": INK, "handlelength": 2.6}
        drawn = figure.legend([*legend.values()], [*legend], loc="outside lower center", ncols=legend_columns, **look)
        for text in drawn.get_texts():
            text.set_parse_math(False)
    return figure, axes


def label_axes(ax: Axes, x: str, y: str) -> None:
    """Name the axes; the vertical one above it, in horizontal letters."""
    ax.set_xlabel(x)
    ax.set_title(y, loc="left", fontsize=9, color=INK, pad=8)


def label_panels(axes: list[Axes], count: int, columns: int, x: str, y: str = "") -> None:
    """Name the axes of the first `count` panels at the left and at the bottom of the grid; hide the other panels."""
    for index, ax in enumerate(axes):
        if index >= count:
            ax.set_axis_off()
        if index + columns >= count:
            ax.set_xlabel(x)
        if index % columns == 0:
            ax.set_ylabel(y)


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


def draw_band(ax: Axes, band: Band, style: SchemeStyle, points: int, alpha: float) -> None:
    """The line of a scheme, marked as `line_options` says for so many points, and its band if it has one."""
    ax.plot(band.x, band.mean, **line_options(style, points))
    if band.seeds > 1:
        ax.fill_between(band.x, band.low, band.high, color=style.color, alpha=alpha, linewidth=0)


_CONSTANT_LINES = {"token frequencies": (0, (1, 1.5)), "token pairs": (0, (6, 2))}
"""How the losses that every model must beat are drawn, in ink: dots and dashes that no scheme has."""


def constant_handle(name: str) -> Line2D:
    """The line of a constant for the legend."""
    return Line2D([], [], color=INK, linewidth=1.0, linestyle=_CONSTANT_LINES[name])


def draw_constants(ax: Axes, losses: Mapping[str, float], *, within: bool) -> None:
    """A level line for each loss that a model must beat.

    Args:
        ax: to draw on.
        losses: by name.
        within: draw only those that lie in the range of the axes, and leave the range as it is.
    """
    low, high = ax.get_ylim()
    for name, loss in losses.items():
        if low < loss < high or not within:
            ax.axhline(loss, color=INK, linewidth=1.0, linestyle=_CONSTANT_LINES[name], zorder=1)
    if within:
        ax.set_ylim(low, high)


def line_handles(styles: Mapping[str, SchemeStyle], points: int = 1) -> dict[str, Artist]:
    """A line for the legend by label, as `line_options` draws it for so many points."""
    return {label: Line2D([], [], **line_options(style, points)) for label, style in styles.items()}


def note(figure: Figure, text: str) -> None:
    """A remark under the figure's title line, at its upper right."""
    if text:
        figure.suptitle(text, x=0.995, ha="right", fontsize=8, color=FAINT, style="italic", wrap=True)


def remark(what: str, labels: Iterable[str]) -> str:
    """Such as `not measured: pre, post`; empty without labels."""
    named = ", ".join(labels)
    return f"{what}: {named}" if named else ""
