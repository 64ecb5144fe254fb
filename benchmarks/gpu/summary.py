"""From turns to medians, ratios within rounds, and errors of the estimate."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

from benchmarks.analysis import Estimate, estimate, flops_per_token, paired_ratio
from benchmarks.contenders import MATRIX_PEAK
from benchmarks.gpu.prediction import Prediction, parameters_of
from benchmarks.gpu.results import Results
from benchmarks.measure import Measurement
from benchmarks.settings import Settings

BEFORE_ROUNDS = -1
"""The round of a measurement that is of no round: when a contender is ready, and when it has ended."""


@dataclass(frozen=True)
class Trained:
    """What the turns of one contender come to.

    Attributes:
        label: of its measurements.
        settings: of the run.
        tokens_per_second: predicted tokens, of all devices together.
        speed_ratio: of the one that it is compared with to this one, within rounds; None: they have no round in common.
        peak_share: model operations of all token slots by second, over the peak of matrix multiplication in the round,
            times the devices.
        step_seconds: of an optimiser step.
        peak_bytes: of tensors, after compiling.
        reserved_bytes: that PyTorch took of the GPU; None on a processor.
        first_step_seconds: from the start of building the model, while others compiled beside it.
        loss: of the last step; None: it was ended before.
    """

    label: str
    settings: Settings
    tokens_per_second: Estimate
    speed_ratio: Estimate | None
    peak_share: Estimate | None
    step_seconds: Estimate
    peak_bytes: int
    reserved_bytes: int | None
    first_step_seconds: float
    loss: float | None


@dataclass(frozen=True)
class PredictionError:
    """What was predicted beside what was measured.

    Attributes:
        label: of the measurements.
        predicted: see there.
        step_seconds: measured.
        peak_bytes: measured.
    """

    label: str
    predicted: Prediction
    step_seconds: float
    peak_bytes: int

    @property
    def time_error(self) -> float:
        """Predicted over measured, less 1."""
        return self.predicted.step_seconds / self.step_seconds - 1

    @property
    def memory_error(self) -> float:
        """Predicted over measured, less 1."""
        return self.predicted.peak_bytes / self.peak_bytes - 1

    @property
    def exact_utilization(self) -> float:
        """The share of the device's peaks with which the predicted time would be the measured one."""
        return self.predicted.utilization * self.predicted.step_seconds / self.step_seconds


def trained(results: Results, size: str, *, processes: bool) -> list[Trained]:
    """Return what was trained of a size, in order; the first is the one that the others are compared with.

    Args:
        results: of the benchmark.
        size: recipe of the model.
        processes: of the runs on several GPUs, or of those on one.
    """
    measured = [one for one in results.measurements if one.contender != MATRIX_PEAK and one.settings["size"] == size]
    labels = list(dict.fromkeys(one.label for one in measured if (one.settings["processes"] > 1) is processes))
    rates = {label: _by_round(measured, label, _rate) for label in labels}
    peaks = {
        one.round: max(one.values.values())
        for one in results.measurements
        if one.contender == MATRIX_PEAK and one.settings["size"] == size and one.round > BEFORE_ROUNDS
    }
    return [_trained(measured, label, rates, peaks) for label in labels if rates[label]]


def _trained(
    measured: Sequence[Measurement], label: str, rates: dict[str, dict[int, float]], peaks: dict[int, float]
) -> Trained:
    settings = Settings(**next(one.settings for one in measured if one.label == label))
    operations = flops_per_token(parameters_of(settings), settings) / settings.processes
    flops = {number: rate * operations for number, rate in _by_round(measured, label, _slot_rate).items()}
    turns = [one.values for one in measured if one.label == label and one.round > BEFORE_ROUNDS and one.values]
    others = [one.values for one in measured if one.label == label and one.round == BEFORE_ROUNDS]
    base = rates[next(iter(rates))]
    return Trained(
        label=label,
        settings=settings,
        tokens_per_second=estimate(list(rates[label].values())),
        speed_ratio=paired_ratio(base, rates[label]),
        peak_share=paired_ratio(flops, peaks),
        step_seconds=estimate([median(values["step_seconds"]) for values in turns]),
        peak_bytes=max(values["peak_bytes"] for values in turns),
        reserved_bytes=max((values["reserved_bytes"] or 0 for values in turns), default=0) or None,
        first_step_seconds=next(values["first_step_seconds"] for values in others if "first_step_seconds" in values),
        loss=next((values["loss"] for values in others if "loss" in values), None),
    )


def prediction_errors(results: Results, found: Sequence[Trained]) -> list[PredictionError]:
    """Return what `estimate` said of those that were trained, as far as it said anything."""
    return [
        PredictionError(one.label, predicted, one.step_seconds.median, one.peak_bytes)
        for one in found
        if (predicted := results.predictions.get(one.label)) is not None
    ]


def _by_round(measured: Sequence[Measurement], label: str, rate: Any) -> dict[int, float]:
    turns = [one for one in measured if one.label == label and one.round > BEFORE_ROUNDS and one.status == "ok"]
    return {one.round: rate(one.values) for one in turns}


def _rate(values: dict[str, Any]) -> float:
    return sum(values["predicted"]) / sum(values["step_seconds"])


def _slot_rate(values: dict[str, Any]) -> float:
    return sum(values["slots"]) / sum(values["step_seconds"])
