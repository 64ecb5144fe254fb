"""From raw measurements to medians, paired ratios and straight lines."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Literal

import numpy as np

from benchmarks.contenders import MATRIX_PEAK
from benchmarks.measure import Measurement
from benchmarks.settings import SEQUENCE_LENGTH, Settings, pre_comes_first

_VALUES_FOR_BOOTSTRAP = 6
_RESAMPLES = 10_000
LEAST_BUSY = 0.75
"""A measurement whose processor time is below this share of time * threads was disturbed: it does not count."""

_BOOTSTRAP = "median, 95 % bootstrap interval"
_RANGE = "median, minimum .. maximum"


@dataclass(frozen=True)
class Estimate:
    """A median of `count` values with an interval; `method` says which."""

    median: float
    low: float
    high: float
    count: int
    method: str


@dataclass(frozen=True)
class Speed:
    """What one measurement comes to, over its steady steps.

    Attributes:
        step_seconds: median over steps.
        busy: processor time over time * threads; below about 0.9, something else was running. 1 on a GPU, for which
            the processor only waits.
        tokens_per_processor_second: predicted tokens by the time of all processors: other programs lengthen it less.
        tokens_per_second: predicted tokens: the median over steps of each step's rate.
        slots_per_second: the same of all token slots, padding included.
        peak_bytes: see `Meter.peak_bytes`.
        first_step_seconds: from the start of building the model to the end of the first optimiser step.
        padding: share of the token slots.
        loss: of the last step.
        flops_per_token: see `flops_per_token`.
    """

    step_seconds: float
    busy: float
    tokens_per_processor_second: float
    tokens_per_second: float
    slots_per_second: float
    peak_bytes: int
    first_step_seconds: float
    padding: float
    loss: float
    flops_per_token: float


@dataclass(frozen=True)
class Line:
    """The least-squares line through a few points.

    Attributes:
        intercept: at 0.
        slope: per unit.
        residual: the largest distance of a point from the line, as a share of the mean of the points.
    """

    intercept: float
    slope: float
    residual: float


def estimate(values: Sequence[float]) -> Estimate:
    """Return the median, with a bootstrap interval from 6 values on, and with minimum and maximum below."""
    low, high, method = min(values), max(values), _RANGE
    if len(values) >= _VALUES_FOR_BOOTSTRAP:
        generator = np.random.default_rng(0)
        medians = np.median(generator.choice(np.asarray(values), (_RESAMPLES, len(values))), axis=1)
        low, high = (float(value) for value in np.quantile(medians, (0.025, 0.975)))
        method = _BOOTSTRAP
    return Estimate(median(values), low, high, len(values), method)


def flops_per_token(parameters: int, settings: Settings) -> float:
    """Return the floating-point operations of forward and backward for one token, by the usual formula.

        6 * (parameters - V * d) + 12 * L * d * T / 2

    V * d: the input embedding, which is looked up, not multiplied; the second term: attention scores and values, halved
    because a token attends to half of the row on average. L layers, width d, T tokens in a row.
    """
    model = settings.recipe().model
    embedding = settings.vocabulary * model.hidden_size
    attention = 12 * model.num_hidden_layers * model.hidden_size * SEQUENCE_LENGTH / 2
    return 6 * (parameters - embedding) + attention


def speed(measurement: Measurement) -> Speed:
    """Return what a successful measurement comes to."""
    values = measurement.values
    settings = Settings(**measurement.settings)
    steady = slice(settings.warm_up_steps, None)
    seconds = values["step_seconds"][steady]
    busy = sum(values["processor_seconds"][steady]) / (sum(seconds) * settings.threads)
    slots = sum(values["slots"][steady])
    return Speed(
        step_seconds=median(seconds),
        busy=busy if values.get("device", "cpu") == "cpu" else 1.0,
        tokens_per_processor_second=_median_rate(values["predicted"][steady], values["processor_seconds"][steady]),
        tokens_per_second=_median_rate(values["predicted"][steady], seconds),
        slots_per_second=_median_rate(values["slots"][steady], seconds),
        peak_bytes=values["peak_bytes"],
        first_step_seconds=values["step_seconds"][0],
        padding=sum(values["padding"][steady]) / slots,
        loss=values["loss"],
        flops_per_token=flops_per_token(values["parameters"], settings),
    )


def speeds(measurements: Iterable[Measurement], label: str) -> dict[int, Speed]:
    """Return round -> speed of what was measured under a label, without measurements that were disturbed."""
    found = all_speeds(measurements, label)
    return {number: one for number, one in found.items() if one.busy >= LEAST_BUSY}


def all_speeds(measurements: Iterable[Measurement], label: str) -> dict[int, Speed]:
    """Return round -> speed of what was measured under a label, disturbed or not: processor times count still."""
    return {one.round: speed(one) for one in measurements if one.label == label and one.status == "ok"}


def count_disturbed(measurements: Iterable[Measurement], labels: Iterable[str]) -> int:
    """Return how many measurements `speeds` leaves out."""
    known = set(labels)
    found = (one for one in measurements if one.label in known and one.status == "ok")
    return sum(speed(one).busy < LEAST_BUSY for one in found)


def matrix_peaks(measurements: Iterable[Measurement]) -> dict[int, float]:
    """Return round -> the machine's operations per second: those of the best shape of matrix multiplication."""
    found = (one for one in measurements if one.contender == MATRIX_PEAK and one.status == "ok")
    return {one.round: max(one.values.values()) for one in found}


def paired_ratio(above: dict[int, float], below: dict[int, float]) -> Estimate | None:
    """Return the ratio within each round, over all rounds that have both; None if none has."""
    ratios = [above[number] / below[number] for number in above if number in below]
    return estimate(ratios) if ratios else None


def step_pairs(
    measurements: Iterable[Measurement], label: str, time: Literal["step_seconds", "processor_seconds"] = "step_seconds"
) -> list[tuple[float, float]]:
    """Return (seconds of `pre`, seconds of the scheme) of every pair of steps that `run_beside_pre` measured.

    `time` says which: of the clock, or of the processor, which other programs on the machine lengthen less.
    """
    pairs: list[tuple[float, float]] = []
    for one in measurements:
        if one.label != label or one.status != "ok":
            continue
        seconds = one.values[time]
        for step in range(Settings(**one.settings).warm_up_steps, len(seconds) // 2):
            first, second = seconds[2 * step : 2 * step + 2]
            pairs.append((first, second) if pre_comes_first(step) else (second, first))
    return pairs


def fit_line(points: Sequence[tuple[float, float]]) -> Line:
    """Return the straight line through (x, y) points."""
    x, y = (np.asarray(axis, dtype=float) for axis in zip(*points, strict=True))
    slope, intercept = np.polyfit(x, y, 1)
    residual = np.abs(y - (slope * x + intercept)).max() / y.mean()
    return Line(float(intercept), float(slope), float(residual))


def _median_rate(tokens: Sequence[int], seconds: Sequence[float]) -> float:
    return median(count / time for count, time in zip(tokens, seconds, strict=True))
