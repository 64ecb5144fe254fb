"""What range of numbers an axis shows: of all that can be read together; what is far outside is named instead."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import median_low

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
Range = tuple[float, float]

_FAR = 4.0
"""A number this often as far from zero as three quarters of the others is far outside."""

_FAR_PANEL = 8.0
"""A panel whose range is this often as wide as the usual one has a range of its own."""


def finite(*arrays: Array | None) -> Array:
    """The finite numbers of several arrays."""
    return np.concatenate([np.empty(0), *(one[np.isfinite(one)].ravel() for one in arrays if one is not None)])


def bar_range(values: Array) -> Range:
    """The range of bars, from zero on: of all but the few that are far higher, or lower, than most."""
    values = finite(values)
    return -_reach(-values), _reach(values)


def _reach(values: Array) -> float:
    positive = np.sort(values[values > 0])
    if not positive.size:
        return 0.0
    if positive.size >= 4:
        limit = _FAR * float(np.quantile(positive, 0.75))
        if positive[-1] > 1.5 * limit:
            return float(positive[positive <= limit][-1])
    return float(positive[-1])


def common_range(ranges: Mapping[str, Range]) -> tuple[Range, set[str]]:
    """One range for panels side by side, and the panels that would flatten the others and so have their own.

    The usual width is the (lower) median of the panels'.
    """
    widths = {label: high - low for label, (low, high) in ranges.items() if high > low}
    usual = median_low(widths.values()) if widths else 0.0
    own = {label for label, width in widths.items() if width > _FAR_PANEL * usual}
    shared = [one for label, one in ranges.items() if label not in own]
    return (min(low for low, _ in shared), max(high for _, high in shared)), own


def with_intervals(shown: Range, low: Array, high: Array) -> Range:
    """The range with room for the ends of intervals, without those far outside, which would flatten the rest."""
    bottom, top = shown
    room = 0.75 * (top - bottom)
    lower, upper = finite(low), finite(high)
    return (
        min([bottom, *lower[lower >= bottom - room]]),
        max([top, *upper[upper <= top + room]]),
    )


def far_above(values: Sequence[float]) -> float:
    """The largest value that is no outlier: a scheme that trained badly must not flatten all others to one line."""
    low = min(values)
    limit = low + max(5 * (float(np.median(values)) - low), 0.05 * abs(low))
    return max(value for value in values if value <= limit)


def padded(shown: Range, below: float = 0.05, above: float = 0.05) -> Range:
    """The range with room at both ends, and some width even where all numbers are equal."""
    low, high = shown
    width = high - low
    if width <= 1e-9 * max(abs(low), abs(high)):
        width = 0.2 * abs(high) or 1.0
        low, high = low - width / 2, high + width / 2
    return low - below * width, high + above * width
