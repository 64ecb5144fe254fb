"""How numbers read in tables and sentences: one place, so that terminal, Markdown and HTML agree."""

from __future__ import annotations

import math

from mixln.report.results import ComparisonResult, Difference, SchemeSummary
from mixln.report.series import Estimate

MISSING = "-"
"""Stands for a number that was not measured."""


def number(value: float | None, digits: int = 3) -> str:
    """A number with a fixed count of decimals, or a dash if it is missing or not finite."""
    return MISSING if value is None or not math.isfinite(value) else f"{value:.{digits}f}"


def significant(value: float, digits: int = 3) -> str:
    """A number with so many significant digits, and an exponent only where it is very small or very large."""
    if not math.isfinite(value):
        return MISSING
    if value == 0 or 1e-3 <= abs(value) < 1e6:
        return f"{float(f'{value:.{digits - 1}e}'):,.{12}f}".rstrip("0").rstrip(".")
    return power_of_ten(value, digits - 1)


def loss(summary: SchemeSummary) -> str:
    """Mean validation loss, with the spread over seeds if it is known: `4.302 ± 0.012`."""
    if summary.loss_mean is None or summary.loss_spread is None:
        return number(summary.loss_mean)
    return f"{number(summary.loss_mean)} ± {number(summary.loss_spread)}"


def perplexity(value: float | None) -> str:
    """Perplexity with two decimals; from 1000 on with thousands separators and none."""
    if value is None or not math.isfinite(value):
        return MISSING
    return f"{value:.2f}" if value < 1000 else f"{value:,.0f}"


def learning_rate(value: float) -> str:
    """A learning rate as people write it: `1e-3`, `2.5e-4`."""
    return power_of_ten(value, 2)


def power_of_ten(value: float, digits: int) -> str:
    """A number with an exponent as people write it, with at most so many decimals: `-1.5e-7`."""
    mantissa, exponent = f"{value:.{digits}e}".split("e")
    if "." in mantissa:
        mantissa = mantissa.rstrip("0").rstrip(".")
    return f"{mantissa}e{int(exponent)}"


def short(value: float, digits: int = 2) -> str:
    """A number in few letters: `0.05`, `1200`; with an exponent where it is very small or very large: `1e-5`."""
    return f"{value:g}" if value == 0 or 1e-4 <= abs(value) < 1e6 else power_of_ten(value, digits)


def difference(value: Difference | None) -> str:
    """Difference to the baseline with its 95 % interval, if there is one: `-0.045 [-0.081, -0.009]`."""
    if value is None:
        return MISSING
    return value.estimate.format("+.3f")


def tokens(value: float) -> str:
    """A count of tokens in short: `3.3M`, `1.3B`."""
    for size, unit in ((1e12, "T"), (1e9, "B"), (1e6, "M"), (1e3, "K")):
        if abs(value) >= size:
            return f"{value / size:.3g}{unit}"
    return f"{value:.0f}"


def duration(seconds: float) -> str:
    """A time in its two largest units: `42 s`, `3 min 20 s`, `2 h 05 min`."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"


def difference_header(result: ComparisonResult) -> str:
    """Head of the column of differences, which says whether it holds intervals."""
    has_interval = any(s.difference is not None and s.difference.interval is not None for s in result.summaries)
    return f"difference to {result.baseline}" + (" [95 % CI]" if has_interval else "")


def percent(value: float | None, form: str = ".2f") -> str:
    """A share in percent, without the sign: `65.32`, or a dash if it is missing."""
    return MISSING if value is None else f"{100 * value:{form}}"


def percents(estimate: Estimate | None, form: str = ".2f") -> str:
    """A share with its interval, in percent: `65.32 [64.38, 66.25]`."""
    if estimate is None:
        return MISSING
    value = percent(estimate.value, form)
    if estimate.interval is None:
        return value
    return f"{value} [{', '.join(percent(end, form) for end in estimate.interval)}]"


def learning_rates(result: ComparisonResult) -> list[float]:
    """The learning rates of the grid, ascending."""
    return sorted({point.learning_rate for point in result.grid})
