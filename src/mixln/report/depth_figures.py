"""Figures of depth: what each layer of each scheme does."""

from __future__ import annotations

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from mixln.report import canvas
from mixln.report.aggregate import Array, Band, depth_bands, mean_angular_distance, without_depth
from mixln.report.results import ComparisonResult
from mixln.report.style import SchemeStyle, scheme_styles, wrap_label

_NOTHING = "No run has depth measures."


def gradient_norms(result: ComparisonResult) -> Figure:
    """L2 norm of the loss gradient of each layer at initialisation, one line a scheme."""
    bands = depth_bands(result, lambda depth: depth.gradient_norm_at_init, first=1)
    return _lines(result, bands, "layer", "Gradient norm of the layer at initialisation (L2)", always_log=False)


def variance(result: ComparisonResult) -> Figure:
    """Variance of the hidden state after each layer, on a logarithmic axis, one line a scheme."""
    bands = depth_bands(result, lambda depth: depth.variance, first=0)
    title = "Variance of the hidden state over channels, after training (log scale)"
    return _lines(result, bands, "after layer (0: the embeddings)", title, always_log=True)


def angular_distance_heatmaps(result: ComparisonResult) -> Figure:
    """Angular distance d(l, n) between the inputs of blocks l and l + n: one triangle a scheme, one colour scale.

    The form of Gromov et al. 2024, figure 4, and of Mix-LN.
    """
    matrices = mean_angular_distance(result)
    if not matrices:
        return canvas.empty(_NOTHING)
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
        ax.set_title(wrap_label(placement), fontsize=9, loc="left", color=canvas.INK)
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
    canvas.note(figure, canvas.left_out(without_depth(result)))
    return figure


def removal_loss(result: ComparisonResult) -> Figure:
    """Increase of the validation loss when each layer is removed: one panel a scheme, on one scale.

    The few layers that matter far more than all others (often the first) are cut off at the top and carry their value,
    so that the others remain readable. Whiskers: lowest and highest seed. Outline: the baseline.
    """
    bands = depth_bands(result, lambda depth: depth.removal_loss_increase, first=1)
    if not bands:
        return canvas.empty(_NOTHING)
    styles = scheme_styles(result)
    depth = max(len(band.x) for band in bands.values())
    columns = min(len(bands), 3 if depth <= 16 and len(bands) != 4 else 2)
    rows = -(-len(bands) // columns)
    lines = max(len(wrap_label(label, 40).splitlines()) for label in bands)
    figure, axes = canvas.panels(rows, columns, rows * (1.75 + 0.16 * lines) + 0.7, sharey=True)
    top, bottom = _clip_range(list(bands.values()))
    reference = bands.get(result.baseline) if result.baseline is not None else None
    for index, (ax, (placement, band)) in enumerate(zip(axes, bands.items(), strict=False)):
        _removal_panel(ax, band, styles[placement], top)
        if reference is not None and reference is not band:
            edges = np.append(reference.x - 0.5, reference.x[-1] + 0.5)
            ax.stairs(np.minimum(reference.mean, top * 1.05), edges, color=canvas.INK, linewidth=0.8, baseline=None)
        ax.set_ylim(bottom, top * 1.08)
        canvas.layer_axis(ax, 1, len(band.x))
        ax.set_title(wrap_label(placement, 40), fontsize=9, loc="left", color=canvas.INK)
        ax.set_xlabel("removed layer" if index + columns >= len(bands) else "", fontsize=9, color=canvas.INK)
    for ax in axes[len(bands) :]:
        ax.set_axis_off()
    figure.supylabel("Loss increase (nats/token)", fontsize=9, color=canvas.INK)
    remarks = [f"outline: {result.baseline}"] if reference is not None and len(bands) > 1 else []
    remarks += filter(None, [canvas.left_out(without_depth(result))])
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
    lowest = min(0.0, min(float(np.nanmin(band.low)) if np.isfinite(band.low).any() else 0.0 for band in bands))
    return (highest * 1.1 if highest > 0 else 1.0), lowest * 1.15


def _lines(result: ComparisonResult, bands: dict[str, Band], x: str, title: str, always_log: bool) -> Figure:
    if not bands:
        return canvas.empty(_NOTHING)
    styles = scheme_styles(result)
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
    canvas.note(figure, canvas.left_out(without_depth(result)))
    canvas.legend(figure, [Line2D([], [], **canvas.line_options(styles[label], 1)) for label in labels], labels)
    return figure
