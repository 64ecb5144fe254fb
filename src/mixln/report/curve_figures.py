"""Figures of training: loss over tokens, and loss over learning rates."""

from __future__ import annotations

from statistics import median

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, NullLocator

from mixln.report import canvas, cells
from mixln.report.aggregate import Band, best_runs, curve_arrays, mean_curve
from mixln.report.results import ComparisonResult
from mixln.report.statistics import has_diverged
from mixln.report.style import scheme_styles

_ZOOM = 0.4
"""Part of training, counted from its end, that the right panel of the loss curves shows."""


def loss_curves(result: ComparisonResult) -> Figure | None:
    """Validation loss over training tokens: the whole of training, and its last part enlarged.

    Each scheme at its best learning rate: mean over seeds with a band from the lowest to the highest; the smoothed
    training loss faint behind it. A diverged run is a thin line that ends in a cross, and is in no mean. None if no
    run has a curve.
    """
    if not any(run.validation_curve or run.train_curve for run in result.runs):
        return None
    styles = scheme_styles(result)
    runs = best_runs(result)
    bands = {
        placement: band
        for placement, group in runs.items()
        if (band := mean_curve([run.validation_curve for run in group if not has_diverged(run)])) is not None
    }
    tails = _tails(bands)
    points = max((len(band.x) for band in tails.values()), default=100)
    handles = canvas.line_handles(styles, points)
    constants = {} if result.constants is None else result.constants.losses
    handles |= {name: canvas.constant_handle(name) for name in constants}
    figure, axes = canvas.panels(1, 2 if tails else 1, 3.7, legend=handles)
    whole = axes[0]
    for placement, group in runs.items():
        style = styles[placement]
        faint = mean_curve([run.train_curve for run in group if not has_diverged(run)], smooth=True)
        # Behind many schemes' lines the noise of their training losses would only be in the way.
        for ax in axes if len(runs) <= 5 else axes[:1]:
            if faint is not None:
                ax.plot(faint.x, faint.mean, color=style.color, linewidth=0.8, alpha=0.35)
        for run in filter(has_diverged, group):
            tokens, losses = curve_arrays(run.validation_curve or run.train_curve)
            if tokens.size:
                whole.plot(tokens, losses, color=style.color, linewidth=1.0, linestyle=":")
                whole.plot(tokens[-1:], losses[-1:], "x", color=style.color, markersize=7, markeredgewidth=2)
    for placement, band in bands.items():
        for ax in axes:
            shown_points = 100 if ax is whole else len(band.x)
            canvas.draw_band(ax, band, styles[placement], shown_points, alpha=0.1 if len(bands) > 6 else 0.18)
    any_diverged = any(has_diverged(run) for group in runs.values() for run in group)
    canvas.label_axes(
        whole, "training tokens", "Validation loss (nats per token)" + ("; cross: diverged" if any_diverged else "")
    )
    for ax in axes:
        canvas.token_axis(ax)
    if tails:
        canvas.label_axes(axes[1], "training tokens", f"The last {_ZOOM:.0%} of training, enlarged")
        canvas.note(figure, canvas.remark("above the enlarged range", _enlarge(axes[1], tails)))
    for ax in axes:
        canvas.draw_constants(ax, constants, within=ax is not whole)
    return figure


def learning_rate_grid(result: ComparisonResult) -> Figure | None:
    """Mean validation loss of each scheme over the learning rates; a ring marks the best one, a cross divergence.

    None if there was only one learning rate.
    """
    rates = cells.learning_rates(result)
    if len(rates) < 2:
        return None
    styles = scheme_styles(result)
    figure, (ax,) = canvas.panels(1, 1, 3.6, legend=canvas.line_handles(styles))
    ax.set_xscale("log")
    drawn: dict[str, list[float]] = {}
    for summary in result.summaries:
        style = styles[summary.placement]
        points = sorted(
            (point.learning_rate, point.loss_mean)
            for point in result.grid
            if point.placement == summary.placement and point.loss_mean is not None
        )
        if points:
            ax.plot(*np.array(points).T, **canvas.line_options(style, len(points)))
            drawn[summary.placement] = [loss for _, loss in points]
        if summary.loss_mean is not None:
            ring = {"markersize": 10, "markerfacecolor": "none", "markeredgecolor": style.color, "markeredgewidth": 1.3}
            ax.plot([summary.learning_rate], [summary.loss_mean], "o", **ring)
    _cross_out_diverged(ax, result, rates)
    if drawn:
        everything = [loss for values in drawn.values() for loss in values]
        low, high = min(everything), _robust_top(everything)
        room = high - low or 0.05
        ax.set_ylim(low - 0.08 * room, high + 0.2 * room)
        above = [name for name in drawn if max(drawn[name]) > high]
        canvas.note(figure, canvas.remark("partly or wholly above the range", above))
    ax.xaxis.set_major_locator(FixedLocator(rates))
    ax.xaxis.set_minor_locator(NullLocator())
    ax.xaxis.set_major_formatter(lambda value, _: cells.learning_rate(value))
    canvas.label_axes(
        ax,
        "peak learning rate (log scale)",
        "Validation loss (nats per token); ring: best; cross at the top: a run diverged",
    )
    return figure


def _tails(bands: dict[str, Band]) -> dict[str, Band]:
    """The end of each curve that has at least two points there."""
    start = (1 - _ZOOM) * max((float(band.x[-1]) for band in bands.values()), default=0.0)
    tails: dict[str, Band] = {}
    for placement, band in bands.items():
        late = band.x >= start
        if np.count_nonzero(late) > 1:
            tails[placement] = Band(band.x[late], band.mean[late], band.low[late], band.high[late], band.seeds)
    return tails


def _enlarge(ax: Axes, tails: dict[str, Band]) -> list[str]:
    """Limit the axes to the end of the curves; return the schemes that lie above them."""
    finals = {placement: float(band.mean[-1]) for placement, band in tails.items()}
    top = _robust_top(list(finals.values()))
    inside = [band for placement, band in tails.items() if finals[placement] <= top]
    low, high = min(float(band.low.min()) for band in inside), max(float(band.high.max()) for band in inside)
    margin = 0.05 * (high - low) or 0.05
    ax.set_ylim(low - margin, high + margin)
    start, end = min(float(band.x[0]) for band in tails.values()), max(float(band.x[-1]) for band in tails.values())
    ax.set_xlim(start, end + 0.02 * (end - start))
    return [placement for placement in tails if finals[placement] > top]


def _cross_out_diverged(ax: Axes, result: ComparisonResult, rates: list[float]) -> None:
    """A cross above every learning rate at which a run of a scheme diverged."""
    styles = scheme_styles(result)
    lost = {(run.placement, run.learning_rate) for run in result.runs if has_diverged(run)}
    # Side by side, so that no scheme's cross hides another's, and never as far as the next learning rate.
    step = min(0.02, 0.6 / ((len(rates) - 1) * len(styles)))
    for index, (placement, style) in enumerate(styles.items()):
        shift = (rates[-1] / rates[0]) ** (step * (index - (len(styles) - 1) / 2))
        for rate in rates:
            if (placement, rate) in lost:
                cross = {"color": style.color, "markersize": 6, "markeredgewidth": 1.8}
                ax.plot([rate * shift], [0.96], "x", transform=ax.get_xaxis_transform(), **cross)


def _robust_top(values: list[float]) -> float:
    """The largest value that is no outlier: a scheme that trained badly must not flatten all others to one line."""
    low = min(values)
    limit = low + max(5 * (median(values) - low), 0.05 * abs(low))
    return max(value for value in values if value <= limit)
