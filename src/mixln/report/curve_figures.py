"""Figures of training: loss over tokens, and loss over learning rates."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.ticker import FixedLocator, NullLocator

from mixln.report import canvas, cells, ranges
from mixln.report.aggregate import Band, best_runs, curve_arrays, mean_curve
from mixln.report.drawing import FILE, Drawing, Format
from mixln.report.results import ComparisonResult, CurvePoint, RunResult, ValuePoint
from mixln.report.statistics import has_diverged, has_grid
from mixln.report.style import SchemeStyle, scheme_styles

_ZOOM = 0.4
"""Part of training, counted from its end, that the right panel of the loss curves shows."""


def _loss(result: ComparisonResult) -> str:
    return f"Validation loss ({result.terms.loss})"


def _counted(result: ComparisonResult) -> str:
    return f"training {result.terms.unit}"


def loss_curves(result: ComparisonResult, form: Format = FILE) -> Drawing | None:
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
    constants = {} if result.to_beat is None else result.to_beat.losses
    loss, counted = _loss(result), _counted(result)
    looks = styles | canvas.constant_styles(constants)
    legend = canvas.line_handles(looks, points) if form.legend else None
    rows, columns = (1, 2 if tails else 1) if form.width > 6 else (2 if tails else 1, 1)
    figure, axes = canvas.panels(rows, columns, 3.7 * rows, form.width, legend=legend)
    drawing = Drawing(figure, ("label", counted, loss, "lowest seed", "highest seed"), legend=looks)
    whole = axes[0]
    always = list(constants.values())
    for placement, group in runs.items():
        always += _draw_runs(drawing, axes if len(runs) <= 5 else axes[:1], placement, group, styles[placement])
    for placement, band in bands.items():
        for ax in axes:
            shown_points = 100 if ax is whole else len(band.x)
            alpha = 0.1 if len(bands) > 6 else 0.18
            artists = canvas.draw_band(ax, band, styles[placement], shown_points, alpha=alpha)
            low, high = (band.low, band.high) if band.seeds > 1 else (None, None)
            drawing.add(ax, placement, artists, band.x, band.mean, low=low, high=high)
    any_diverged = any(has_diverged(run) for group in runs.values() for run in group)
    cross = "cross: the end of a run that diverged" if any_diverged else ""
    canvas.label_axes(whole, counted, loss, cross, _limit(whole, drawing, always))
    for ax in axes:
        canvas.count_axis(ax)
    if tails:
        outside = canvas.remark("\N{UPWARDS ARROW} above, at the end", _enlarge(axes[1], tails))
        drawing.out_of_range += [outside] if outside else []
        canvas.label_axes(axes[1], counted, f"The last {_ZOOM:.0%} of training, enlarged", outside)
    for ax in axes:
        _draw_levels(drawing, ax, constants, always=ax is whole)
    return drawing


def value_curves(quantity: str, result: ComparisonResult, form: Format = FILE) -> Drawing | None:
    """A share of the validation images over training, in percent; drawn as `loss_curves`, in one panel.

    None if no run has such a curve.
    """
    curves = {
        placement: [_in_percent(run.value_curves[quantity]) for run in group if quantity in run.value_curves]
        for placement, group in best_runs(result).items()
    }
    bands = {placement: band for placement, own in curves.items() if (band := mean_curve(own)) is not None}
    if not bands:
        return None
    label = next((one.label or one.name for one in result.quantities if one.name == quantity), quantity)
    styles, to_beat = scheme_styles(result), result.to_beat
    values = {} if to_beat is None else {name: own[quantity] for name, own in to_beat.values.items() if quantity in own}
    constants = {name: 100 * value for name, value in values.items()}
    looks = styles | canvas.constant_styles(constants)
    points = max(len(band.x) for band in bands.values())
    legend = canvas.line_handles(looks, points) if form.legend else None
    figure, (ax,) = canvas.panels(1, 1, 3.7, form.width, legend=legend)
    named, counted = f"{label} on the validation images (%)", _counted(result)
    drawing = Drawing(figure, ("label", counted, named, "lowest seed", "highest seed"), legend=looks)
    for placement, band in bands.items():
        artists = canvas.draw_band(ax, band, styles[placement], points, alpha=0.1 if len(bands) > 6 else 0.18)
        low, high = (band.low, band.high) if band.seeds > 1 else (None, None)
        drawing.add(ax, placement, artists, band.x, band.mean, low=low, high=high)
    canvas.label_axes(ax, counted, named, "", "")
    canvas.count_axis(ax)
    _draw_levels(drawing, ax, constants, always=True)
    return drawing


def _in_percent(curve: Sequence[ValuePoint]) -> list[CurvePoint]:
    return [CurvePoint(point.step, point.images, 100 * point.value) for point in curve]


def _draw_levels(drawing: Drawing, ax: Axes, constants: Mapping[str, float], *, always: bool) -> None:
    """A level line for each constant; unless always, only where the axis shows it anyway."""
    for name, level in constants.items():
        if always or ax.get_ylim()[0] < level < ax.get_ylim()[1]:
            look = drawing.legend[name]
            line = ax.axhline(level, color=look.color, linewidth=1.0, linestyle=look.line, zorder=1)
            drawing.add(ax, name, [line], ax.get_xlim(), [level, level])


def _draw_runs(
    drawing: Drawing, axes: list[Axes], placement: str, group: list[RunResult], style: SchemeStyle
) -> list[float]:
    """The smoothed training loss of a scheme, in the background, whose ends are returned; and its diverged runs."""
    artists: list[Artist] = []
    faint = mean_curve([run.train_curve for run in group if not has_diverged(run)], smooth=True)
    # Behind many schemes' lines the noise of their training losses would only be in the way.
    for ax in axes:
        if faint is not None:
            artists += ax.plot(faint.x, faint.mean, color=style.color, linewidth=0.8, alpha=0.35)
    drawing.artists.setdefault(placement, []).extend(artists)
    for run in filter(has_diverged, group):
        tokens, losses = curve_arrays(run.validation_curve or run.train_curve)
        if tokens.size:
            line = axes[0].plot(tokens, losses, color=style.color, linewidth=1.0, linestyle=":")
            line += axes[0].plot(tokens[-1:], losses[-1:], "x", color=style.color, markersize=7, markeredgewidth=2)
            drawing.add(axes[0], placement, line, tokens, losses)
    return [] if faint is None else [float(faint.mean.min()), float(faint.mean.max())]


def _limit(ax: Axes, drawing: Drawing, always: list[float]) -> str:
    """Limit the vertical axis to these losses and to what can be read together with them; return what is above."""
    curves = {
        f"{marks.label}: up to {cells.significant(float(found.max()))}": found
        for marks in drawing.marks
        if marks.axes is ax and (found := ranges.finite(marks.value)).size
    }
    if not curves:
        return ""
    top = ranges.far_above([float(found.max()) for found in curves.values()])
    inside = [found for found in curves.values() if found.max() <= top]
    low = min([*(float(found.min()) for found in curves.values()), *always])
    high = max([*(float(found.max()) for found in inside), *always])
    ax.set_ylim(*ranges.padded((low, high)))
    outside = canvas.remark(
        "\N{UPWARDS ARROW} partly above", (name for name, found in curves.items() if found.max() > top)
    )
    drawing.out_of_range += [outside] if outside else []
    return outside


def learning_rate_grid(result: ComparisonResult, form: Format = FILE) -> Drawing | None:
    """Mean validation loss of each scheme over the learning rates; a ring marks the best one, a cross divergence.

    None if every scheme had one learning rate.
    """
    if not has_grid(result):
        return None
    rates = cells.learning_rates(result)
    styles = scheme_styles(result)
    legend = canvas.line_handles(styles) if form.legend else None
    figure, (ax,) = canvas.panels(1, 1, 3.6, form.width, legend=legend)
    ax.set_xscale("log")
    drawing = Drawing(figure, ("label", "peak learning rate", _loss(result)), legend=styles)
    for summary in result.summaries:
        style = styles[summary.placement]
        points = sorted(
            (point.learning_rate, point.loss_mean)
            for point in result.grid
            if point.placement == summary.placement and point.loss_mean is not None
        )
        artists: list[Artist] = []
        if summary.loss_mean is not None:
            ring = {"markersize": 10, "markerfacecolor": "none", "markeredgecolor": style.color, "markeredgewidth": 1.3}
            artists += ax.plot([summary.learning_rate], [summary.loss_mean], "o", **ring)
        if points:
            tried, reached = np.array(points).T
            artists += ax.plot(tried, reached, **canvas.line_options(style, len(points)))
            drawing.add(ax, summary.placement, artists, tried, reached)
    _cross_out_diverged(ax, result, rates)
    outside = ""
    if drawing.marks:
        everything = np.concatenate([marks.value for marks in drawing.marks])
        low, high = float(everything.min()), ranges.far_above(everything.tolist())
        ax.set_ylim(*ranges.padded((low, high), 0.08, 0.2))
        above = (
            f"{marks.label}, {cells.learning_rate(rate)}: {cells.significant(value)}"
            for marks in drawing.marks
            for rate, value in zip(marks.x, marks.value, strict=True)
            if value > ax.get_ylim()[1]
        )
        outside = canvas.remark("\N{UPWARDS ARROW} above", above)
        drawing.out_of_range += [outside] if outside else []
    ax.xaxis.set_major_locator(FixedLocator(_spaced(rates, form.width)))
    ax.xaxis.set_minor_locator(NullLocator())
    ax.xaxis.set_major_formatter(lambda value, _: cells.learning_rate(value))
    crosses = "; cross at the top: a run diverged" if any(has_diverged(run) for run in result.runs) else ""
    canvas.label_axes(ax, "peak learning rate (log scale)", _loss(result), f"ring: best{crosses}", outside)
    return drawing


def _spaced(rates: list[float], width: float) -> list[float]:
    """The learning rates, without those that stand too near to the one before for both to be labelled."""
    apart = (rates[-1] / rates[0]) ** (0.55 / (width - 1.0))
    kept = rates[:1]
    for rate in rates[1:]:
        if rate >= apart * kept[-1]:
            kept.append(rate)
    return kept


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
    """Limit the axes to the end of the curves; return the schemes that end above them, and where."""
    finals = {placement: float(band.mean[-1]) for placement, band in tails.items()}
    top = ranges.far_above(list(finals.values()))
    inside = [band for placement, band in tails.items() if finals[placement] <= top]
    shown = min(float(band.mean.min()) for band in inside), max(float(band.mean.max()) for band in inside)
    lows, highs = (np.concatenate(ends) for ends in zip(*((band.low, band.high) for band in inside), strict=True))
    ax.set_ylim(*ranges.padded(ranges.with_intervals(shown, lows, highs)))
    start, end = min(float(band.x[0]) for band in tails.values()), max(float(band.x[-1]) for band in tails.values())
    ax.set_xlim(start, end + 0.02 * (end - start))
    return [f"{label} {cells.significant(last, 4)}" for label, last in finals.items() if last > top]


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
