"""What a run tells while it goes on: its metrics, and its progress to whoever started it."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Self

from mixln.training.metrics import MetricsLog
from mixln.training.run import StepRecord

ReportStep = Callable[[int, float, float], None]
"""Called after every step with (step, training loss, tokens per second)."""


class RunLog:
    """Reads the numbers of steps from the device, and passes them on.

    Args:
        metrics: where they go; None on all processes but the main one.
        report_step: see `ReportStep`.
    """

    def __init__(self, metrics: MetricsLog | None, report_step: ReportStep | None) -> None:
        self._metrics = metrics
        self._report_step = report_step
        self._tokens = 0.0
        self._seconds = 0.0

    def write(self, record: StepRecord) -> None:
        """Write the metrics of a step.

        Raises:
            InputError: the disk is full.
        """
        values = dict(record.values)
        self._tokens += values.pop("step_tokens")
        self._seconds += values["seconds"]
        loss, rate = float(record.loss), self._tokens / self._seconds
        if self._metrics is not None:
            layers = {name: float(value) for name, value in record.layers.items()}
            numbers = {"loss": loss, "gradient_norm": float(record.gradient_norm), "tokens_per_second": rate}
            self._metrics.write(record.step, {**numbers, **values, **layers})
        if self._report_step is not None and math.isfinite(loss):
            self._report_step(record.step, loss, rate)

    def rewind(self, step: int) -> None:
        """Drop what was written of later steps: the run has rolled back."""
        if self._metrics is not None:
            self._metrics.rewind(step)

    def flush(self) -> None:
        """Put on disk what has been written, so that a checkpoint never knows of later steps than the metrics."""
        if self._metrics is not None:
            self._metrics.flush()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        if self._metrics is not None:
            self._metrics.close()
