"""Means over seeds of what the figures draw."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from mixln.report.results import ComparisonResult, CurvePoint, RunResult
from mixln.report.series import Series, run_layers

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Band:
    """Mean, minimum and maximum over seeds of a quantity along `x`; NaN where no seed has a finite value.

    Of one model, `low` and `high` are the ends of intervals, and `seeds` is above 1 if there are any.
    """

    x: Array
    mean: Array
    low: Array
    high: Array
    seeds: int
    unit: str = ""


def best_runs(result: ComparisonResult) -> dict[str, list[RunResult]]:
    """Every scheme's runs at its best learning rate, in the order of the summaries."""
    return {
        summary.placement: [
            run
            for run in result.runs
            if run.placement == summary.placement and run.learning_rate == summary.learning_rate
        ]
        for summary in result.summaries
    }


def curve_arrays(curve: Sequence[CurvePoint]) -> tuple[Array, Array]:
    """Tokens and losses of the finite points of a curve, ascending in tokens."""
    points = np.array([(point.tokens, point.loss) for point in curve], dtype=float).reshape(-1, 2)
    points = points[np.isfinite(points).all(axis=1)]
    points = points[np.argsort(points[:, 0], kind="stable")]
    return points[:, 0], points[:, 1]


def mean_curve(curves: Sequence[Sequence[CurvePoint]], smooth: bool = False) -> Band | None:
    """Several seeds' curves as one band over the tokens that all of them reached; None without a point.

    Curves are interpolated linearly where they were taken at different tokens. With `smooth`, each is first averaged
    over a window of 1/20 of its points.
    """
    pairs = [pair for pair in map(curve_arrays, curves) if pair[0].size]
    if not pairs:
        return None
    start, end = max(tokens[0] for tokens, _ in pairs), min(tokens[-1] for tokens, _ in pairs)
    grid = np.unique(np.concatenate([tokens for tokens, _ in pairs]))
    grid = grid[(grid >= start) & (grid <= end)]
    if not grid.size:
        return None
    if smooth:
        pairs = [(tokens, moving_average(losses, max(1, len(losses) // 20))) for tokens, losses in pairs]
        # A screen shows no more, and an SVG grows with every point.
        grid = grid[np.unique(np.linspace(0, grid.size - 1, 300).astype(int))]
    return _band(grid, np.stack([np.interp(grid, tokens, losses) for tokens, losses in pairs]))


def over_seeds(runs: Sequence[Series]) -> Band:
    """A series of several seeds as one band, over layers from 1 on, or states from 0 on."""
    return _band(runs[0].places, np.array([run.values for run in runs], dtype=float), runs[0].unit)


def triangle_matrix(values: Array) -> Array:
    """A series over runs as (L, L): row n-1, column l-1 holds the value of the n layers from l on, else NaN."""
    size = run_layers(len(values))
    matrix = np.full((size, size), np.nan)
    matrix[np.tri(size, dtype=bool)[::-1]] = values
    return matrix


def depth_of(result: ComparisonResult) -> dict[str, list[dict[str, Series]]]:
    """Depth measures at the best learning rate of the schemes that have any, one for each seed that was measured.

    Those of runs that have not learned word order are left out.
    """
    measures: dict[str, list[dict[str, Series]]] = {}
    for placement, runs in best_runs(result).items():
        # Seeds of one scheme share their depth; if a hand-made file says otherwise, do not mix the two.
        layers = runs[0].num_hidden_layers
        found = [run.depth for run in runs if run.depth and run.has_learned and run.num_hidden_layers == layers]
        if found:
            measures[placement] = found
    return measures


def _band(x: Array | Sequence[float], values: Array, unit: str = "") -> Band:
    # A masked mean rather than nanmean, which warns where every seed is NaN.
    masked = np.ma.masked_invalid(values)
    mean, low, high = (
        np.ma.filled(part.astype(float), np.nan)
        for part in (masked.mean(axis=0), masked.min(axis=0), masked.max(axis=0))
    )
    return Band(np.asarray(x, dtype=float), mean, low, high, len(values), unit)


def moving_average(values: Array, window: int) -> Array:
    """Centred mean over `window` values, over fewer at both ends."""
    kernel = np.ones(window)
    return np.convolve(values, kernel, "same") / np.convolve(np.ones_like(values), kernel, "same")
