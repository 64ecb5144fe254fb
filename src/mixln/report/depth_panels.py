"""Drawings of what each layer does, whatever it was measured on: triangles, bars and lines, one look for all."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import numpy as np
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.colorbar import Colorbar
from matplotlib.colors import Normalize
from matplotlib.image import AxesImage
from matplotlib.lines import Line2D

from mixln.placement.words import layer_ranges
from mixln.report import canvas, cells, ranges
from mixln.report.aggregate import Array, Band
from mixln.report.drawing import Drawing, Format
from mixln.report.ranges import Range
from mixln.report.style import SchemeStyle

_ONE_SCALE = 3.0
"""Maps of colours have one scale if none of them would use less than one part in this many of it."""

_NAMED = 3
"""So many numbers outside of an axis are named one by one."""


def draw_triangles(matrices: Mapping[str, Array], value: str, form: Format, remark: str = "") -> Drawing:
    """Angular distance d(l, n) between the inputs of blocks l and l + n: one triangle for each label.

    The form of Gromov et al. 2024, figure 4, and of Mix-LN. All have one colour scale, unless that would leave one of
    them dark; then each has its own.

    Args:
        matrices: (L, L) each: row n-1, column l-1 holds d(l, n), else nan.
        value: name of the number in the table that is copied.
        form: what is drawn for.
        remark: written above.
    """
    columns = min(4 if form.width > 6 else 2 if len(matrices) > 2 else 1, len(matrices))
    if len(matrices) in (5, 6, 9) and columns == 4:
        columns = 3
    rows = -(-len(matrices) // columns)
    tops = [float(np.fmax.reduce(matrix, axis=None, initial=0.0)) for matrix in matrices.values()]
    shared = max(tops) <= _ONE_SCALE * min(tops)
    # One or two panels over the full width would be huge, and so take a narrower figure.
    width = form.width if columns > 2 else min(form.width, 1.2 + 3.1 * columns)
    height = (width - (1.2 if shared else 0.4 + 0.7 * columns)) / columns + 0.35 + canvas.title_lines(2)
    flat = columns == 1 and rows > 1
    figure, axes = canvas.panels(rows, columns, rows * height + 0.3, width)
    figure.set_layout_engine("compressed", h_pad=0.12)
    drawing = Drawing(figure, ("label", "first layer", "number of layers", value), by_column=True)
    for ax, (label, matrix), top in zip(axes, matrices.items(), tops, strict=False):
        size = len(matrix)
        extent = (0.5, size + 0.5, 0.5, size + 0.5)
        scale = Normalize(0.0, (max(tops) if shared else top) or 1.0)
        masked = np.ma.masked_invalid(matrix)
        image = ax.imshow(masked, cmap="viridis", norm=scale, extent=extent, origin="lower", interpolation="none")
        ax.grid(visible=False)
        for axis in (ax.xaxis, ax.yaxis):
            axis.set_ticks(canvas.layer_ticks(1, size, most=5))
        ax.yaxis.set_major_formatter("{x:.0f}")
        canvas.panel_title(ax, label, beside=0.35)
        run, first = np.nonzero(np.isfinite(matrix))
        drawing.add(ax, label, [image], first + 1, matrix[run, first], y=run + 1)
        if not shared:
            _color_bar(drawing, image, [ax])
    canvas.label_panels(axes, len(matrices), columns, "first layer l", "block size n")
    if shared:
        # beside a column of panels it would be endless
        bar = _color_bar(
            drawing, axes[0].images[0], axes[:1] if flat else axes[: len(matrices)], rows=1 if flat else rows
        )
        bar.set_label(value, fontsize=9, color=canvas.INK)
    else:
        remark = "; ".join(filter(None, [f"{value}; each panel has its own scale", remark]))
    canvas.note(figure, remark)
    return drawing


def _color_bar(drawing: Drawing, image: AxesImage, axes: Sequence[Axes], rows: int = 1) -> Colorbar:
    bar = drawing.figure.colorbar(image, ax=axes, shrink=0.95, aspect=26 * rows, pad=0.015)
    bar.outline.set_visible(False)
    assert bar.solids is not None
    bar.solids.set(rasterized=True, edgecolor="face")
    bar.ax.tick_params(labelsize=8.5, colors=canvas.INK)
    bar.ax.yaxis.set_major_locator(canvas.MaxNLocator(nbins=5))
    canvas.plain_ticks(bar.ax.yaxis)
    return bar


def draw_bars(
    bands: Mapping[str, Band],
    styles: Mapping[str, SchemeStyle],
    x: str,
    y: str,
    form: Format,
    *,
    baseline: str | None = None,
    remark: str = "",
) -> Drawing:
    """A bar for each layer: one panel for each label, on one scale.

    Whiskers: the ends of the bands. Outline: the baseline. The few bars that are far longer than all others (often the
    first) are cut off, and their numbers are written under the title of the panel. Whiskers never set the scale: one
    that does not fit ends in an arrow, and is written there too. A panel whose bars would flatten those of the others
    has a scale of its own.
    """
    columns = _bar_columns(len(bands), max(len(band.x) for band in bands.values()), form.width)
    rows = -(-len(bands) // columns)
    shown = {label: ranges.bar_range(band.mean) for label, band in bands.items()}
    shared, own = ranges.common_range(shown)
    together = [band for label, band in bands.items() if label not in own]
    limits = {
        label: _with_whiskers(shown[label], [band]) if label in own else _with_whiskers(shared, together)
        for label, band in bands.items()
    }
    outside = {label: _outside(band, limits[label]) for label, band in bands.items()}
    remarks = {label: (["own scale"] if label in own and len(bands) > 1 else []) + outside[label] for label in bands}
    length = canvas.line_length(form.width, columns)
    lines = max(len(canvas.title_of_panel(length, label, *remarks[label])) for label in bands)
    height = (1.75 if columns > 1 else 1.9) + canvas.title_lines(lines)
    figure, axes = canvas.panels(rows, columns, rows * height + 0.6, form.width)
    drawing = Drawing(figure, ("label", x, y, "low", "high"), by_column=True)
    reference = None if baseline is None else bands.get(baseline)
    for index, (ax, (label, band)) in enumerate(zip(axes, bands.items(), strict=False)):
        artists = _bars(ax, band, styles[label], limits[label])
        if reference is not None and reference is not band:
            edges = np.append(reference.x - 0.5, reference.x[-1] + 0.5)
            outline = np.clip(np.nan_to_num(reference.mean), *limits[label])
            artists.append(ax.stairs(outline, edges, color=canvas.INK, linewidth=0.8, baseline=None))
        ax.set_ylim(*ranges.padded(limits[label], 0.06 if limits[label][0] < 0 else 0.0, 0.08))
        canvas.layer_axis(ax, 1, len(band.x))
        canvas.panel_title(ax, label, *remarks[label])
        if not own and index % columns:
            ax.tick_params(labelleft=False)
        low, high = (band.low, band.high) if band.seeds > 1 else (None, None)
        drawing.add(ax, label, artists, band.x, band.mean, low=low, high=high)
    drawing.out_of_range += [line for lines in outside.values() for line in lines]
    canvas.label_panels(axes, len(bands), columns, x)
    figure.supylabel(y, fontsize=9, color=canvas.INK, parse_math=False)
    outlined = f"outline: {baseline}" if reference is not None and len(bands) > 1 else ""
    canvas.note(figure, "; ".join(filter(None, [outlined, remark])))
    return drawing


def _with_whiskers(shown: Range, bands: Sequence[Band]) -> Range:
    return ranges.with_intervals(
        shown, np.concatenate([band.low for band in bands]), np.concatenate([band.high for band in bands])
    )


def _bar_columns(count: int, depth: int, width: float) -> int:
    narrowest = 2.7 if depth <= 16 else 4.0 if depth <= 48 else 5.0
    columns = max(1, min(count, int(width / narrowest)))
    return 2 if columns == 3 and count == 4 else columns


def _bars(ax: Axes, band: Band, style: SchemeStyle, limits: Range) -> list[Artist]:
    height = np.clip(np.nan_to_num(band.mean), *limits)
    look = {"hatch": style.hatch, "edgecolor": "white" if style.hatch else style.color, "linewidth": 0.0}
    artists: list[Artist] = [*ax.bar(band.x, height, width=0.78, color=style.color, **look)]
    if band.seeds > 1:
        # of a bar that is cut off, too: its interval may begin inside
        whisker = np.isfinite(band.low) & np.isfinite(band.high) & (band.high >= limits[0]) & (band.low <= limits[1])
        low, high = (np.clip(end[whisker], *limits) for end in (band.low, band.high))
        artists.append(ax.vlines(band.x[whisker], low, high, color=canvas.INK, linewidth=0.8))
    artists.append(ax.axhline(0, color=canvas.FAINT, linewidth=0.8))
    for ends, limit, marker in ((band.high, limits[1], "^"), (band.low, limits[0], "v")):
        furthest = ends if band.seeds > 1 else band.mean
        beyond = np.isfinite(band.mean) & ((furthest - limit) * (1 if marker == "^" else -1) > 0)
        if beyond.any():
            at = np.full(np.count_nonzero(beyond), limit)
            artists += ax.plot(band.x[beyond], at, marker, color=canvas.INK, markersize=5, clip_on=False, linewidth=0)
    return artists


def _outside(band: Band, limits: Range) -> list[str]:
    """What the axis does not show: numbers, ends of intervals, and what is no number."""
    finite = np.isfinite(band.mean)
    outside = finite & ((band.mean > limits[1]) | (band.mean < limits[0]))
    parts = [
        _named(band.x[where], band.mean[where]) for where in (outside & (band.mean > 0), outside & (band.mean < 0))
    ]
    if band.seeds > 1:
        for ends, beyond in ((band.high, band.high > limits[1]), (band.low, band.low < limits[0])):
            further = finite & np.isfinite(ends) & beyond & ~outside
            parts.append(_named(band.x[further], ends[further], is_interval=True))
    if not finite.all():
        parts.append(f"no finite number: {layer_ranges(map(int, band.x[~finite]))}")
    return [part for part in parts if part]


def _named(places: Iterable[float], values: Array, *, is_interval: bool = False) -> str:
    numbers = [int(place) for place in places]
    if not numbers:
        return ""
    arrow = "\N{UPWARDS ARROW}" if values[0] > 0 else "\N{DOWNWARDS ARROW}"
    if len(numbers) <= _NAMED:
        what = "interval to " if is_interval else ""
        each = (f"layer {n}: {what}{cells.significant(v)}" for n, v in zip(numbers, values, strict=True))
        return f"{arrow} {', '.join(each)}"
    least, most = cells.significant(float(values.min())), cells.significant(float(values.max()))
    which = layer_ranges(numbers) if len(numbers) <= 8 else f"{len(numbers)} layers"
    return f"{arrow} {which}: {'intervals end at ' if is_interval else ''}{least} to {most}"


def draw_lines(
    bands: Mapping[str, Band],
    styles: Mapping[str, SchemeStyle],
    x: str,
    title: str,
    form: Format,
    *,
    always_log: bool = False,
    remark: str = "",
) -> Drawing:
    """A line over the layers for each label, with its band; logarithmic if asked to, or over more than a decade.

    Bands never set the scale. On a linear axis, the lines that would flatten all others are cut off and named.
    """
    chosen = {label: styles[label] for label in bands}
    legend = canvas.line_handles(chosen) if form.legend else None
    figure, (ax,) = canvas.panels(1, 1, 3.5, form.width, legend=legend)
    drawing = Drawing(figure, ("label", x, title, "low", "high"), legend=chosen)
    for label, band in bands.items():
        artists = canvas.draw_band(ax, band, styles[label], len(band.x), alpha=0.15)
        low, high = (band.low, band.high) if band.seeds > 1 else (None, None)
        drawing.add(ax, label, artists, band.x, band.mean, low=low, high=high)
    outside = _limit_lines(ax, bands, always_log=always_log)
    drawing.out_of_range += [outside] if outside else []
    places = np.concatenate([band.x for band in bands.values()])
    canvas.layer_axis(ax, int(places.min()), int(places.max()))
    canvas.label_axes(ax, x, title, outside)
    canvas.note(figure, remark)
    return drawing


def _limit_lines(ax: Axes, bands: Mapping[str, Band], *, always_log: bool) -> str:
    """Limit the vertical axis to what can be read together; return what is outside."""
    means = {label: found for label, band in bands.items() if (found := ranges.finite(band.mean)).size}
    if not means:
        return ""
    everything = np.concatenate(list(means.values()))
    lower = np.concatenate([band.low for band in bands.values()])
    upper = np.concatenate([band.high for band in bands.values()])
    positive = everything[everything > 0]
    if positive.size and (always_log or (positive.size == everything.size and positive.max() > 10 * positive.min())):
        low, high = (np.log10(np.where(end > 0, end, np.nan)) for end in (lower, upper))
        shown = float(np.log10(positive.min())), float(np.log10(positive.max()))
        limits = ranges.padded(ranges.with_intervals(shown, low, high))
        ax.set_ylim(*(10.0**end for end in limits))
        canvas.log_y(ax)
        return canvas.remark("not above 0", (label for label, one in means.items() if one.min() <= 0))
    each = {label: (min(0.0, float(one.min())), max(0.0, float(one.max()))) for label, one in means.items()}
    shared, own = ranges.common_range(each)
    limits = ranges.padded(ranges.with_intervals(shared, lower, upper), 0.0 if shared[0] == 0 else 0.05)
    ax.set_ylim(*limits)
    named = (f"{label}: {cells.significant(each[label][0])} to {cells.significant(each[label][1])}" for label in own)
    return canvas.remark("outside the axis", sorted(named))


def draw_points(
    points: Mapping[str, tuple[Array, Array]], styles: Mapping[str, SchemeStyle], x: str, y: str, form: Format
) -> Drawing:
    """One panel for each label: the second array of numbers over the first; the grey line is where they agree."""
    columns = min(3 if form.width > 6 else 1, len(points))
    rows = -(-len(points) // columns)
    figure, axes = canvas.panels(rows, columns, rows * 3.2, form.width if columns > 1 else min(4.5, form.width))
    drawing = Drawing(figure, ("label", x, y))
    for ax, (label, (across, up)) in zip(axes, points.items(), strict=False):
        drawn = np.isfinite(across) & np.isfinite(up)
        across, up = across[drawn], up[drawn]
        ends = [float(across.min(initial=0.0)), float(across.max(initial=0.0))]
        ax.add_line(Line2D(ends, ends, color=canvas.FAINT, linewidth=0.8))
        look = {"markersize": 2.5, "markeredgewidth": 0, "alpha": 0.5, "color": styles[label].color}
        artists = ax.plot(across, up, "o", **look)
        ax.xaxis.set_major_locator(canvas.MaxNLocator(nbins=5))
        canvas.plain_ticks(ax.xaxis)
        canvas.panel_title(ax, label)
        drawing.add(ax, label, artists, across, up)
    canvas.label_panels(axes, len(points), columns, x, y)
    return drawing
