"""Figures of training: loss over tokens, and loss over learning rates."""

from __future__ import annotations

from statistics import median

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FixedLocator, NullLocator

from mixln.report import canvas, cells
from mixln.report.aggregate import Band, best_runs, curve_arrays, mean_curve
from mixln.report.results import ComparisonResult
from mixln.report.statistics import has_diverged
from mixln.report.style import SchemeStyle, scheme_styles

_ZOOM = 0.4
"""Part of training, counted from its end, that the right panel of the loss curves shows."""


def loss_curves(result: ComparisonResult) -> Figure:
    """Validation loss over training tokens: the whole of training, and its last part enlarged.

    Each scheme at its best learning rate: mean over seeds with a band from the lowest to the highest; the smoothed
    training loss faint behind it. A diverged run is a thin line that ends in a cross, and counts in no mean.
    """
    styles = scheme_styles(result)
    runs = best_runs(result)
    bands = {
        placement: band
        for placement, group in runs.items()
        if (band := mean_curve([run.validation_curve for run in group if not has_diverged(run)])) is not None
    }
    labels = list(runs)
    figure, (whole, zoom) = canvas.panels(1, 2, 3.7 + canvas.legend_rows(labels), width_ratios=(1, 1.15))
    for placement, group in runs.items():
        faint = mean_curve([run.train_curve for run in group if not has_diverged(run)], smooth=True)
        for ax in (whole, zoom):
            if faint is not None:
                ax.plot(faint.x, faint.mean, color=styles[placement].color, linewidth=0.8, alpha=0.35)
        for run in filter(has_diverged, group):
            tokens, losses = curve_arrays(run.validation_curve or run.train_curve)
            if tokens.size:
                whole.plot(tokens, losses, color=styles[placement].color, linewidth=0.9, linestyle=":")
                whole.plot(
                    tokens[-1:], losses[-1:], "x", color=styles[placement].color, markersize=7, markeredgewidth=2
                )
    for placement, band in bands.items():
        for ax in (whole, zoom):
            _draw_band(ax, band, styles[placement])
    for ax in (whole, zoom):
        canvas.token_axis(ax)
    canvas.label_axes(whole, "training tokens", "Validation loss (nats per token); × diverged")
    outside = _zoom(zoom, bands)
    if outside is None:
        zoom.remove()
    else:
        canvas.label_axes(zoom, "training tokens", f"The last {_ZOOM:.0%} of training, enlarged")
    canvas.note(figure, f"above the enlarged range: {', '.join(outside)}" if outside else "")
    handles = [Line2D([], [], **canvas.line_options(styles[label], 1)) for label in labels]
    canvas.legend(figure, handles, labels)
    return figure


def learning_rate_grid(result: ComparisonResult) -> Figure:
    """Mean validation loss of each scheme over the learning rates; a ring marks the best one, a cross divergence."""
    rates = cells.learning_rates(result)
    if len(rates) < 2:
        return canvas.empty("One learning rate: there is no grid to draw.")
    styles = scheme_styles(result)
    labels = [summary.placement for summary in result.summaries]
    figure, (ax,) = canvas.panels(1, 1, 3.6 + canvas.legend_rows(labels))
    ax.set_xscale("log")
    diverged = {(run.placement, run.learning_rate) for run in result.runs if has_diverged(run)}
    drawn: list[float] = []
    for index, summary in enumerate(result.summaries):
        style = styles[summary.placement]
        points = sorted(
            (p.learning_rate, p.loss_mean) for p in result.grid if p.placement == summary.placement and p.loss_mean
        )
        ax.plot(*np.array(points, dtype=float).reshape(-1, 2).T, **canvas.line_options(style, len(points)))
        drawn += [value for _, value in points]
        if summary.loss_mean is not None:
            ax.plot(
                [summary.learning_rate],
                [summary.loss_mean],
                "o",
                markersize=10,
                markerfacecolor="none",
                markeredgecolor=style.color,
                markeredgewidth=1.3,
            )
        # Side by side in a strip above the data, so that no scheme's cross hides another's.
        shift = 1 + 0.06 * (index - (len(labels) - 1) / 2) / max(1, len(labels) - 1) * np.log10(rates[-1] / rates[0])
        lost = [rate * shift for rate in rates if (summary.placement, rate) in diverged]
        ax.plot(
            lost,
            [0.97] * len(lost),
            "x",
            transform=ax.get_xaxis_transform(),
            color=style.color,
            markersize=6,
            markeredgewidth=1.8,
            clip_on=False,
        )
    if drawn:
        low, high = min(drawn), _robust_top(drawn)
        ax.set_ylim(low - 0.08 * (high - low or 1), high + 0.2 * (high - low or 1))
    ax.xaxis.set_major_locator(FixedLocator(rates))
    ax.xaxis.set_minor_locator(NullLocator())
    ax.xaxis.set_major_formatter(lambda value, _: cells.learning_rate(value))
    canvas.label_axes(
        ax,
        "peak learning rate (log scale)",
        "Validation loss (nats per token); ring: best, × at the top: a run diverged",
    )
    canvas.legend(figure, [Line2D([], [], **canvas.line_options(styles[label], 1)) for label in labels], labels)
    return figure


def _draw_band(ax: Axes, band: Band, style: SchemeStyle) -> None:
    options = canvas.line_options(style, len(band.x) if len(band.x) <= 20 else 100)
    ax.plot(band.x, band.mean, **options)
    if band.seeds > 1:
        ax.fill_between(band.x, band.low, band.high, color=style.color, alpha=0.18, linewidth=0)


def _zoom(ax: Axes, bands: dict[str, Band]) -> list[str] | None:
    """Limits the axes to the end of training; the schemes that lie above them, or None if there is nothing to enlarge."""
    end = max((float(band.x[-1]) for band in bands.values()), default=0.0)
    start = end * (1 - _ZOOM)
    tails = {placement: band for placement, band in bands.items() if np.count_nonzero(band.x >= start) > 1}
    if not tails:
        return None
    finals = {placement: float(band.mean[-1]) for placement, band in tails.items()}
    top = _robust_top(list(finals.values()))
    inside = [band for placement, band in tails.items() if finals[placement] <= top]
    low = min(float(band.low[band.x >= start].min()) for band in inside)
    high = max(float(band.high[band.x >= start].max()) for band in inside)
    margin = 0.05 * (high - low) or 0.05
    ax.set_ylim(low - margin, high + margin)
    ax.set_xlim(start, end + 0.02 * (end - start))
    return [placement for placement in tails if finals[placement] > top]


def _robust_top(values: list[float]) -> float:
    """The largest value that is no outlier: a scheme that trained badly must not flatten all others to one line."""
    low = min(values)
    limit = low + max(5 * (median(values) - low), 0.05 * abs(low))
    return max(value for value in values if value <= limit)
