"""Measurements of every layer, as part of the metrics."""

from __future__ import annotations

from torch import Tensor

from mixln.training.callback import Callback, Run, StepRecord
from mixln.training.callbacks.layer_metrics import layer_gradient_norms, layer_update_ratios


class LayerMeasurements(Callback):
    """Measures gradients, updates and activations of every layer, every so many steps.

    Args:
        every: steps between measurements; 0: never.
    """

    def __init__(self, every: int) -> None:
        self._every = every
        self._is_due = False
        self._gradient_norms: dict[str, Tensor] = {}

    def after_backward(self, run: Run, step: int) -> None:
        """Measure the gradients."""
        self._is_due = self._every > 0 and step % self._every == 0
        if self._is_due:
            self._gradient_norms = layer_gradient_norms(run.layers())

    def after_step(self, run: Run, record: StepRecord, good: Tensor) -> None:
        """Measure the update, and the activations on the batch of the step."""
        del good
        if not self._is_due:
            return
        record.values |= self._gradient_norms
        record.values |= layer_update_ratios(run.layers(), run.optimizer)
        record.values |= run.activations()
