"""Drawings of what each layer does, whatever it was measured on: triangles, bars and lines, one look for all."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from mixln.report import canvas
from mixln.report.aggregate import Array, Band
from mixln.report.style import SchemeStyle, wrap_label


def draw_triangles(matrices: Mapping[str, Array], note: str = "") -> Figure:
    """Angular distance d(l, n) between the inputs of blocks l and l + n: one triangle for each label, one colour scale.

    The form of Gromov et al. 2024, figure 4, and of Mix-LN.

    Args:
        matrices: (L, L) each: row n-1, column l-1 holds d(l, n), else nan.
        note: a remark.
    """
    columns = min(4, len(matrices))
    rows = -(-len(matrices) // columns)
    lines = max(len(wrap_label(label).splitlines()) for label in matrices)
    # One or two panels over the full width would be huge, and so take a narrower figure.
    width = canvas.WIDTH if columns > 2 else 1.2 + 2.9 * columns
    figure, axes = canvas.panels(rows, columns, rows * ((width - 1.2) / columns + 0.3 + 0.16 * lines) + 0.2, width)
    finite = np.concatenate([matrix[np.isfinite(matrix)] for matrix in matrices.values()])
    high = float(finite.max()) if finite.size else 1.0
    image = None
    for ax, (placement, matrix) in zip(axes, matrices.items(), strict=False):
        size = len(matrix)
        image = ax.imshow(
            np.ma.masked_invalid(matrix),
            origin="lower",
            cmap="viridis",
            vmin=0.0,
            vmax=high or 1.0,
            extent=(0.5, size + 0.5, 0.5, size + 0.5),
            interpolation="nearest",
        )
        ax.grid(visible=False)
        for axis in (ax.xaxis, ax.yaxis):
            axis.set_ticks(canvas.layer_ticks(1, size, most=5))
        canvas.panel_title(ax, wrap_label(placement))
    for index, ax in enumerate(axes[: len(matrices)]):
        ax.set_ylabel("block size n" if index % columns == 0 else "", fontsize=9, color=canvas.INK)
        ax.set_xlabel("first layer l" if index + columns >= len(matrices) else "", fontsize=9, color=canvas.INK)
    if image is not None:
        bar = figure.colorbar(image, ax=axes, shrink=0.95, aspect=26 * rows, pad=0.015)
        bar.outline.set_visible(False)
        bar.ax.tick_params(labelsize=8.5, colors=canvas.INK)
        bar.set_label("angular distance d(l, n)", fontsize=9, color=canvas.INK)
    for ax in axes[len(matrices) :]:
        ax.set_axis_off()
    canvas.note(figure, note)
    return figure


def draw_bars(
    bands: Mapping[str, Band],
    styles: Mapping[str, SchemeStyle],
    x: str,
    y: str,
    *,
    baseline: str | None = None,
    note: str = "",
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
    for index, (ax, (placement, band)) in enumerate(zip(axes, bands.items(), strict=False)):
        _removal_panel(ax, band, styles[placement], top)
        if reference is not None and reference is not band:
            edges = np.append(reference.x - 0.5, reference.x[-1] + 0.5)
            ax.stairs(np.minimum(reference.mean, top * 1.05), edges, color=canvas.INK, linewidth=0.8, baseline=None)
        ax.set_ylim(bottom, top * 1.08)
        canvas.layer_axis(ax, 1, len(band.x))
        canvas.panel_title(ax, wrap_label(placement, 40))
        ax.set_xlabel(x if index + columns >= len(bands) else "", fontsize=9, color=canvas.INK)
    for ax in axes[len(bands) :]:
        ax.set_axis_off()
    figure.supylabel(y, fontsize=9, color=canvas.INK, parse_math=False)
    remarks = [f"outline: {baseline}"] if reference is not None and len(bands) > 1 else []
    remarks += filter(None, [note])
    canvas.note(figure, "; ".join(remarks))
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
    """Says which layers are cut off, beside the last bar of each run of them: the bars are too narrow for a number."""
    runs: list[list[tuple[int, float]]] = []
    for layer, value in zip(layers.astype(int), values, strict=True):
        if not runs or layer != runs[-1][-1][0] + 1:
            runs.append([])
        runs[-1].append((int(layer), float(value)))
    for run in runs:
        text = "↑ layer " + ", ".join(f"{layer}: {value:.2f}" for layer, value in run)
        ax.annotate(
            text,
            (run[-1][0] + 0.5, top),
            xytext=(3, 3),
            textcoords="offset points",
            fontsize=7,
            va="top",
            color=canvas.INK,
            bbox={"facecolor": "white", "edgecolor": "none", "pad": 1.0, "alpha": 0.85},
        )


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
    bands: Mapping[str, Band],
    styles: Mapping[str, SchemeStyle],
    x: str,
    title: str,
    *,
    always_log: bool = False,
    note: str = "",
) -> Figure:
    """A line over the layers for each label, with its band; logarithmic if asked to, or over more than a decade."""
    labels = list(bands)
    figure, (ax,) = canvas.panels(1, 1, 3.5 + canvas.legend_rows(labels))
    for placement, band in bands.items():
        style = styles[placement]
        ax.plot(band.x, band.mean, **canvas.line_options(style, len(band.x)))
        if band.seeds > 1:
            ax.fill_between(band.x, band.low, band.high, color=style.color, alpha=0.15, linewidth=0)
    means = np.concatenate([band.mean[np.isfinite(band.mean)] for band in bands.values()])
    if means.size and means.min() > 0 and (always_log or means.max() > 10 * means.min()):
        canvas.log_y(ax)
    elif means.size:
        ax.set_ylim(bottom=min(0.0, float(means.min())))
    canvas.layer_axis(
        ax, int(min(band.x[0] for band in bands.values())), int(max(band.x[-1] for band in bands.values()))
    )
    canvas.label_axes(ax, x, title)
    canvas.note(figure, note)
    canvas.legend(figure, [Line2D([], [], **canvas.line_options(styles[label], 1)) for label in labels], labels)
    return figure


def draw_points(points: Mapping[str, tuple[Array, Array]], styles: Mapping[str, SchemeStyle], x: str, y: str) -> Figure:
    """One panel for each label: the second array of numbers over the first; the grey line is where they agree."""
    columns = min(3, len(points))
    rows = -(-len(points) // columns)
    width = canvas.WIDTH if columns > 1 else 4.5
    figure, axes = canvas.panels(rows, columns, rows * 3.2, width)
    for index, (ax, (label, (across, up))) in enumerate(zip(axes, points.items(), strict=False)):
        ends = [float(across.min()), float(across.max())]
        ax.add_line(Line2D(ends, ends, color=canvas.FAINT, linewidth=0.8))
        ax.plot(across, up, "o", markersize=2.5, markeredgewidth=0, alpha=0.5, color=styles[label].color)
        canvas.panel_title(ax, wrap_label(label))
        ax.set_xlabel(x if index + columns >= len(points) else "", fontsize=9, color=canvas.INK)
        ax.set_ylabel(y if index % columns == 0 else "", fontsize=9, color=canvas.INK)
    for ax in axes[len(points) :]:
        ax.set_axis_off()
    return figure
