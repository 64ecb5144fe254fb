"""Student's t, for confidence intervals."""

from __future__ import annotations

import math


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
