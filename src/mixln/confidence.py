"""Confidence intervals: Student's t, the interval of a share, also of items in groups; how they are written."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Hashable, Sequence
from statistics import fmean


def student_t_two_sided(confidence: float, degrees_of_freedom: int) -> float:
    """The t with P(|T| < t) = confidence, for T of Student's t distribution.

    For whole degrees of freedom the probability is a finite sum (Abramowitz and Stegun 1964, 26.7.3 and 26.7.4), so
    bisection on it is exact to rounding and scipy is not needed.
    """
    if not 0 < confidence < 1 or degrees_of_freedom < 1:
        raise ValueError(f"need 0 < confidence < 1 and df >= 1, got {confidence} and {degrees_of_freedom}")
    low, high = 0.0, math.pi / 2
    for _ in range(100):
        middle = (low + high) / 2
        if _student_probability(middle, degrees_of_freedom) < confidence:
            low = middle
        else:
            high = middle
    return math.sqrt(degrees_of_freedom) * math.tan((low + high) / 2)


def _student_probability(theta: float, degrees_of_freedom: int) -> float:
    """P(|T| < sqrt(df) tan(theta))."""
    sine, cosine = math.sin(theta), math.cos(theta)
    odd = degrees_of_freedom % 2
    term = cosine if odd else 1.0
    total = 0.0
    # odd: cos + 2/3 cos^3 + (2 4)/(3 5) cos^5 ...; even: 1 + 1/2 cos^2 + (1 3)/(2 4) cos^4 ...; both up to cos^(df-2)
    for power in range(odd, degrees_of_freedom - 1, 2):
        total += term
        term *= cosine**2 * (power + 1) / (power + 2)
    return 2 / math.pi * (theta + sine * total) if odd else sine * total


def accuracy_interval(share: float, count: float) -> tuple[float, float]:
    """The 95 % interval of a share of `count` items: Wilson 1927.

    (p + z^2 / 2n +- z sqrt(p (1 - p) / n + z^2 / 4n^2)) / (1 + z^2 / n), z = 1.96. It is no point where p is 0 or 1.
    """
    z = 1.959963984540054
    center, reach = share + z * z / (2 * count), z * math.sqrt(share * (1 - share) / count + z * z / (4 * count**2))
    return max(0.0, (center - reach) / (1 + z * z / count)), min(1.0, (center + reach) / (1 + z * z / count))


def grouped_share_interval(credits: Sequence[float], groups: Sequence[Hashable]) -> tuple[float, float]:
    """The 95 % interval of a share of items that come in groups, such as pairs with one prompt: groups are drawn.

    Wilson's interval at the number of independent items that is as precise (Korn and Graubard 1998): with n items, g
    groups, and e the sums of (credit - p) in each group,

        variance = g / (g - 1) * sum(e^2) / n^2,    n_independent = p (1 - p) / variance * (z / t)^2

    where t is Student's with g - 1 degrees of freedom and z = 1.96; at most n. Where p is 0 or 1 it is g. Where every
    group has one item it is n. One group says nothing of others: the interval is [0, 1].

    Args:
        credits: of each item, in [0, 1].
        groups: which each is of.
    """
    share, count = fmean(credits), len(credits)
    sums = _group_sums([credit - share for credit in credits], groups)
    if len(sums) == count:
        return accuracy_interval(share, count) if count > 1 else (0.0, 1.0)
    if len(sums) == 1:
        return 0.0, 1.0
    variance = _variance_of_mean(sums, count)
    if share in (0, 1) or variance == 0:
        return accuracy_interval(share, len(sums))
    correction = (1.959963984540054 / student_t_two_sided(0.95, len(sums) - 1)) ** 2
    return accuracy_interval(share, min(count, share * (1 - share) / variance * correction))


def grouped_mean_interval(values: Sequence[float], groups: Sequence[Hashable]) -> tuple[float, float]:
    """The 95 % interval of a mean of items that come in groups, by Student's t over the groups; one group: infinite.

    Args:
        values: of each item.
        groups: which each is of.
    """
    mean = fmean(values)
    sums = _group_sums([value - mean for value in values], groups)
    if len(sums) == 1:
        return -math.inf, math.inf
    reach = student_t_two_sided(0.95, len(sums) - 1) * math.sqrt(_variance_of_mean(sums, len(values)))
    return mean - reach, mean + reach


def _group_sums(values: Sequence[float], groups: Sequence[Hashable]) -> list[float]:
    sums: dict[Hashable, float] = defaultdict(float)
    for value, group in zip(values, groups, strict=True):
        sums[group] += value
    return list(sums.values())


def _variance_of_mean(sums: Sequence[float], count: int) -> float:
    return len(sums) / (len(sums) - 1) * sum(one * one for one in sums) / count**2


def fixed(value: float, form: str) -> str:
    """Return a number in this format (`+.3f`); where that would leave zeros alone, its first digits: `+4.1e-5`."""
    text = f"{value:{form}}"
    if not math.isfinite(value) or any(digit in text for digit in "123456789"):
        return text
    if value == 0:
        return "0"
    sign = "+" if "+" in form and value > 0 else ""
    return sign + f"{value:.1e}".replace("e-0", "e-").replace("e+0", "e")


def with_interval(value: float, interval: tuple[float, float] | None, form: str) -> str:
    """Return a number and, if there is one, its interval in this format: `+0.3 [+0.1, +0.5]`; see `fixed`."""
    if interval is None:
        return fixed(value, form)
    return f"{fixed(value, form)} [{fixed(interval[0], form)}, {fixed(interval[1], form)}]"
