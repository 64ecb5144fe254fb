"""Drawings of what each layer does, whatever it was measured on: triangles, bars and lines, one look for all."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from mixln.report import canvas
from mixln.report.aggregate import Array, Band
from mixln.report.style import SchemeStyle, wrap_label


def draw_triangles(matrices: Mapping[str, Array]) -> Figure:
    """Angular distance d(l, n) between the inputs of blocks l and l + n: one triangle for each label, one colour scale.

    The form of Gromov et al. 2024, figure 4, and of Mix-LN.

    Args:
        matrices: (L, L) each: row n-1, column l-1 holds d(l, n), else nan.
    """
    columns = min(4, len(matrices))
    rows = -(-len(matrices) // columns)
    lines = max(len(wrap_label(label).splitlines()) for label in matrices)
    # One or two panels over the full width would be huge, and so take a narrower figure.
    width = canvas.WIDTH if columns > 2 else 1.2 + 2.9 * columns
    figure, axes = canvas.panels(rows, columns, rows * ((width - 1.2) / columns + 0.3 + 0.16 * lines) + 0.2, width)
    scale = Normalize(0.0, max(np.fmax.reduce(matrix, axis=None, initial=0.0) for matrix in matrices.values()) or 1.0)
    for ax, (placement, matrix) in zip(axes, matrices.items(), strict=False):
        extent = (0.5, len(matrix) + 0.5, 0.5, len(matrix) + 0.5)
        masked = np.ma.masked_invalid(matrix)
        ax.imshow(masked, cmap="viridis", norm=scale, origin="lower", extent=extent, interpolation="nearest")
        ax.grid(visible=False)
        for axis in (ax.xaxis, ax.yaxis):
            axis.set_ticks(canvas.layer_ticks(1, len(matrix), most=5))
        canvas.panel_title(ax, wrap_label(placement))
    canvas.label_panels(axes, len(matrices), columns, "first layer l", "block size n")
    bar = figure.colorbar(axes[0].images[0], ax=axes, shrink=0.95, aspect=26 * rows, pad=0.015)
    bar.outline.set_visible(False)
    bar.ax.tick_params(labelsize=8.5, colors=canvas.INK)
    bar.set_label("angular distance d(l, n)", fontsize=9, color=canvas.INK)
    return figure


def draw_bars(
    bands: Mapping[str, Band], styles: Mapping[str, SchemeStyle], x: str, y: str, *, baseline: str | None = None
) -> Figure:
    """A bar for each layer: one panel for each label, on one scale.

    The few bars that are far higher than all others (often the first) are cut off at the top and carry their value, so
    that the others remain readable. Whiskers: the ends of the bands. Outline: the baseline.
    """
    depth = max(len(band.x) for band in bands.values())
    columns = min(len(bands), 3 if depth <= 16 and len(bands) != 4 else 2)
    rows = -(-len(bands) // columns)
    lines = max(len(wrap_label(label, 40).splitlines()) for label in bands)
    figure, axes = canvas.panels(rows, columns, rows * (1.75 + 0.16 * lines) + 0.7, sharey=True)
    top, bottom = _clip_range(list(bands.values()))
    reference = None if baseline is None else bands.get(baseline)
    for ax, (placement, band) in zip(axes, bands.items(), strict=False):
        _removal_panel(ax, band, styles[placement], top)
        if reference is not None and reference is not band:
            edges = np.append(reference.x - 0.5, reference.x[-1] + 0.5)
            ax.stairs(np.minimum(reference.mean, top * 1.05), edges, color=canvas.INK, linewidth=0.8, baseline=None)
        ax.set_ylim(bottom, top * 1.08)
        canvas.layer_axis(ax, 1, len(band.x))
        canvas.panel_title(ax, wrap_label(placement, 40))
    canvas.label_panels(axes, len(bands), columns, x)
    figure.supylabel(y, fontsize=9, color=canvas.INK, parse_math=False)
    return figure


def _removal_panel(ax: Axes, band: Band, style: SchemeStyle, top: float) -> None:
    mean = np.nan_to_num(band.mean)
    cut = mean > top
    ax.bar(
        band.x,
        np.minimum(mean, top * 1.08),
        width=0.78,
        color=style.color,
        hatch=style.hatch,
        edgecolor="white" if style.hatch else style.color,
        linewidth=0.0,
    )
    if band.seeds > 1:
        shown = ~cut & np.isfinite(band.mean)
        ax.vlines(band.x[shown], band.low[shown], band.high[shown], color=canvas.INK, linewidth=0.8)
    ax.axhline(0, color=canvas.FAINT, linewidth=0.8)
    if len(band.x) > 16:
        _name_cut_layers(ax, band.x[cut], mean[cut], top)
        return
    for x, value in zip(band.x[cut], mean[cut], strict=True):
        options = {"rotation": 90, "ha": "center", "va": "top", "color": "white", "fontweight": "bold"}
        ax.annotate(f"{value:.2f} ↑", (x, top), xytext=(0, -3), textcoords="offset points", fontsize=7, **options)


def _name_cut_layers(ax: Axes, layers: Array, values: Array, top: float) -> None:
    """Say which layers are cut off, beside the last bar of each run of them: the bars are too narrow for a number."""
    starts = np.flatnonzero(np.diff(layers) != 1) + 1
    for run, own in zip(np.split(layers, starts), np.split(values, starts), strict=True):
        if run.size:
            text = "↑ layer " + ", ".join(f"{layer:.0f}: {value:.2f}" for layer, value in zip(run, own, strict=True))
            box = {"facecolor": "white", "edgecolor": "none", "pad": 1.0, "alpha": 0.85}
            options = {"fontsize": 7, "va": "top", "color": canvas.INK, "bbox": box}
            ax.annotate(text, (run[-1] + 0.5, top), xytext=(3, 3), textcoords="offset points", **options)


def _clip_range(bands: list[Band]) -> tuple[float, float]:
    """Top and bottom of the axis: the top at the largest value of all layers that are no outliers."""
    values = np.concatenate([band.mean[np.isfinite(band.mean)] for band in bands])
    if not values.size:
        return 1.0, 0.0
    positive = np.sort(values[values > 0])
    highest = float(values.max())
    if positive.size >= 4:
        limit = 4 * float(np.quantile(positive, 0.75))
        if highest > 1.5 * limit:
            highest = float(positive[positive <= limit].max())
    # room for the whiskers of all bars that are not cut off
    ends = np.concatenate([band.high[band.mean <= highest] for band in bands])
    scale = max(abs(highest), -float(values.min()))
    highest = max([highest, *ends[np.isfinite(ends) & (ends <= 3 * scale)]])
    lowest = min(0.0, min(float(np.nanmin(band.low)) if np.isfinite(band.low).any() else 0.0 for band in bands))
    return (highest * 1.1 if highest > 0 else 1.0), lowest * 1.15


def draw_lines(
    bands: Mapping[str, Band], styles: Mapping[str, SchemeStyle], x: str, title: str, *, always_log: bool = False
) -> Figure:
    """A line over the layers for each label, with its band; logarithmic if asked to, or over more than a decade."""
    handles = canvas.line_handles({label: styles[label] for label in bands})
    figure, (ax,) = canvas.panels(1, 1, 3.5, legend=handles)
    for placement, band in bands.items():
        canvas.draw_band(ax, band, styles[placement], len(band.x), alpha=0.15)
    means = np.concatenate([band.mean[np.isfinite(band.mean)] for band in bands.values()])
    if means.size and means.min() > 0 and (always_log or means.max() > 10 * means.min()):
        canvas.log_y(ax)
    elif means.size:
        ax.set_ylim(bottom=min(0.0, float(means.min())))
    places = np.concatenate([band.x for band in bands.values()])
    canvas.layer_axis(ax, int(places.min()), int(places.max()))
    canvas.label_axes(ax, x, title)
    return figure


def draw_points(points: Mapping[str, tuple[Array, Array]], styles: Mapping[str, SchemeStyle], x: str, y: str) -> Figure:
    """One panel for each label: the second array of numbers over the first; the grey line is where they agree."""
    columns = min(3, len(points))
    rows = -(-len(points) // columns)
    figure, axes = canvas.panels(rows, columns, rows * 3.2, canvas.WIDTH if columns > 1 else 4.5)
    for ax, (label, (across, up)) in zip(axes, points.items(), strict=False):
        ends = [float(across.min()), float(across.max())]
        ax.add_line(Line2D(ends, ends, color=canvas.FAINT, linewidth=0.8))
        ax.plot(across, up, "o", markersize=2.5, markeredgewidth=0, alpha=0.5, color=styles[label].color)
        canvas.panel_title(ax, wrap_label(label))
    canvas.label_panels(axes, len(points), columns, x, y)
    return figure
