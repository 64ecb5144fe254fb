"""The common look of the figures: sizes, axes, legends, notes. Object-oriented matplotlib, no global state."""

from __future__ import annotations

import textwrap
from collections.abc import Iterable, Mapping, Sequence
from math import floor, log10
from typing import Any

import numpy as np
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import Formatter, FuncFormatter, LogLocator, MaxNLocator, NullLocator

from mixln.report import cells
from mixln.report.aggregate import Band
from mixln.report.style import SchemeStyle, shorten_label

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
) -> tuple[Figure, list[Axes]]:
    """A figure of `rows` x `columns` axes in reading order, `height` inches tall without its legend and `width` wide.

    The axes have a light horizontal grid, no box, and small grey ticks. The legend is under them, in as many columns
    as the longest label allows.
    """
    legend_columns, named = 1, {}
    if legend:
        characters = int(width * 15.5)
        named = {label: shorten_label(label, characters - 12) for label in legend}
        longest = max(len(line) for text in named.values() for line in text.splitlines())
        legend_columns = max(1, min(len(legend), characters // (longest + 8)))
        height += 0.19 * -(-sum(text.count("\n") + 1 for text in named.values()) // legend_columns) + 0.1
    figure = Figure(figsize=(width, height), layout="constrained", facecolor="white")
    axes = list(figure.subplots(rows, columns, squeeze=False).flat)
    for ax in axes:
        ax.spines[["top", "right"]].set_visible(False)
        ax.spines[["left", "bottom"]].set_color(FAINT)
        ax.tick_params(colors=INK, labelsize=8.5, color=FAINT, length=3)
        ax.tick_params(which="minor", length=0)
        ax.grid(axis="y", color=GRID, linewidth=0.8)
        ax.set_axisbelow(True)
        plain_ticks(ax.yaxis)
        for axis in (ax.xaxis, ax.yaxis):
            axis.label.set(size=9, color=INK)
    if legend:
        look = {"fontsize": 8.5, "frameon": False, "labelcolor": INK, "handlelength": 2.6}
        drawn = figure.legend(
            [*legend.values()], [*named.values()], loc="outside lower center", ncols=legend_columns, **look
        )
        for text in drawn.get_texts():
            text.set_parse_math(False)
    return figure, axes


def label_axes(ax: Axes, x: str, y: str, *remarks: str) -> None:
    """Name the axes; the vertical one above it, in horizontal letters, and under its name what is to be said."""
    ax.set_xlabel(x)
    panel_title(ax, y, *remarks, pad=8)


def label_panels(axes: list[Axes], count: int, columns: int, x: str, y: str = "") -> None:
    """Name the axes of the first `count` panels at the left and at the bottom of the grid; remove the other panels."""
    for ax in axes[count:]:
        ax.remove()
    for index, ax in enumerate(axes[:count]):
        if index + columns >= count:
            ax.set_xlabel(x)
        if index % columns == 0:
            ax.set_ylabel(y)


def panel_title(ax: Axes, label: str, *remarks: str, pad: float = 6, beside: float = 0.0) -> None:
    """The label of a panel, at its upper left, and remarks under it; no letter of them is mathematics.

    `beside` is how wide what stands beside the panel is, in inches, without the vertical axis.
    """
    figure, place = ax.figure, ax.get_subplotspec()
    assert isinstance(figure, Figure)
    assert place is not None
    columns = place.get_gridspec().ncols
    length = line_length(figure.get_figwidth() - beside * columns, columns)
    lines = title_of_panel(length, label, *remarks)
    ax.set_title("\n".join(lines), fontsize=9, loc="left", color=INK, pad=pad, parse_math=False)


def title_of_panel(length: int, label: str, *remarks: str) -> list[str]:
    """The lines of a title, none longer than `length`: at most two of the label, then the remarks."""
    lines = [*shorten_label(label, length).splitlines()]
    return lines + [line for remark in remarks if remark for line in textwrap.wrap(remark, length)]


def line_length(width: float, columns: int) -> int:
    """How many letters of a title fit over one of the panels side by side in a figure."""
    # what is left beside tick labels and the name of the axis
    return max(12, int((width / columns - (0.55 if columns > 1 else 0.75)) * 12.4))


def title_lines(count: int) -> float:
    """How tall so many lines of a title are, in inches."""
    return 0.165 * count


def layer_axis(ax: Axes, first: int, last: int) -> None:
    """Whole layer numbers on the horizontal axis, with half a layer of room at each side."""
    ax.set_xlim(first - 0.6, last + 0.6)
    ax.set_xticks(layer_ticks(first, last, most=13))


def layer_ticks(first: int, last: int, most: int) -> list[int]:
    """At most about `most` layer numbers: the first one, then multiples of a round step."""
    step = next((step for step in (1, 4, 5, 10, 20, 50, 100) if last <= step * most), last)
    return [first, *range(max(step, first + 1), last + 1, step)]


def count_axis(ax: Axes) -> None:
    """Counts of tokens or images in short form (`10M`)."""
    ax.xaxis.set_major_locator(MaxNLocator(nbins=5))
    ax.xaxis.set_major_formatter(FuncFormatter(lambda value, _: cells.tokens(value)))


def log_y(ax: Axes) -> None:
    """A logarithmic vertical axis, labelled with plain numbers: at powers of ten, over few decades between them too."""
    ax.set_yscale("log")
    low, high = ax.get_ylim()
    if high / low < 3:
        ax.yaxis.set_major_locator(MaxNLocator(nbins=5))
        plain_ticks(ax.yaxis)
    else:
        # numticks: or the locator leaves out decades of its own choice
        ax.yaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0) if high / low < 300 else (1.0,), numticks=8))
        ax.yaxis.set_major_formatter(FuncFormatter(lambda value, _: cells.short(value)))
    ax.yaxis.set_minor_locator(NullLocator())


def plain_ticks(axis: Axis) -> None:
    """Whole numbers at the ticks of an axis, without a factor or an offset that stands somewhere else."""
    axis.set_major_formatter(_PlainFormatter())


class _PlainFormatter(Formatter):
    """Every tick as a number of its own, with as many digits as tell it from the next."""

    def __call__(self, x: float, pos: int | None = None) -> str:
        del pos
        return self.format_ticks([x])[0]

    def format_ticks(self, values: Sequence[float]) -> list[str]:
        places = np.unique(np.asarray(values, dtype=float))
        largest = float(np.abs(places).max(initial=0.0))
        step = float(np.diff(places).min()) if places.size > 1 else largest
        with_exponent = step < 1e-4 or largest >= 1e6
        texts: list[str] = []
        for value in values:
            if abs(value) <= 1e-9 * step:
                texts.append("0")
            elif with_exponent:
                texts.append(cells.power_of_ten(value, _digits(10.0 ** -floor(log10(abs(value))) * step)))
            else:
                texts.append(f"{value:,.{_digits(step)}f}")
        return texts


def _digits(step: float) -> int:
    """Decimals that multiples of a step need."""
    return next((digits for digits in range(12) if abs(round(step, digits) - step) < 1e-6 * step), 12)


def line_options(style: SchemeStyle, points: int) -> dict[str, Any]:
    """Line, colour and marker of a scheme; markers only where there is room for them."""
    options: dict[str, Any] = {"color": style.color, "linestyle": style.line, "linewidth": 1.7}
    if points <= 45:
        options |= {"marker": style.marker, "markersize": 4 if points <= 25 else 3, "markeredgewidth": 0}
    return options


def draw_band(ax: Axes, band: Band, style: SchemeStyle, points: int, alpha: float) -> list[Artist]:
    """The line of a scheme, marked as `line_options` says for so many points, and its band if it has one."""
    artists: list[Artist] = [*ax.plot(band.x, band.mean, **line_options(style, points))]
    if band.seeds > 1:
        artists.append(ax.fill_between(band.x, band.low, band.high, color=style.color, alpha=alpha, linewidth=0))
    return artists


_CONSTANT_LINES = ((0, (1, 1.5)), (0, (6, 2)))
"""How what every model must beat is drawn, in ink: dots and dashes that no scheme has."""


def constant_styles(names: Iterable[str]) -> dict[str, SchemeStyle]:
    """The look of the level line of each constant that a model must beat, of two at most."""
    return {name: SchemeStyle(INK, line, "", "") for name, line in zip(names, _CONSTANT_LINES, strict=False)}


def line_handles(styles: Mapping[str, SchemeStyle], points: int = 1) -> dict[str, Artist]:
    """A line for the legend by label, as `line_options` draws it for so many points."""
    return {label: Line2D([], [], **line_options(style, points)) for label, style in styles.items()}


def note(figure: Figure, text: str) -> None:
    """A remark above the panels."""
    if text:
        text = textwrap.fill(text, int(figure.get_figwidth() * 12.4))
        figure.suptitle(text, x=0.01, ha="left", fontsize=9, color=INK, parse_math=False)


def remark(what: str, labels: Iterable[str]) -> str:
    """Such as `not measured: pre, post`; empty without labels."""
    named = ", ".join(labels)
    return f"{what}: {named}" if named else ""
