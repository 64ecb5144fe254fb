"""Measuring what removing layers costs, all of them together."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch

from mixln.errors import InputError
from mixln.measure.batches import ModelBatch, count_tokens
from mixln.measure.frequencies import Predictions, own_frequency_losses
from mixln.measure.interventions import Intervention
from mixln.measure.observation import observe
from mixln.measure.padding import faithful_batches
from mixln.measure.performance import Loss
from mixln.measure.performance_drop import PerformanceDrop
from mixln.models.anatomy import find_block_stack
from mixln.report.pruning_cost import AccuracyCost, PruningCost
from mixln.studies.measured import Measured
from mixln.studies.measuring import estimates_of
from mixln.studies.stages import ReportStage, Steps


def pruning_cost(measured: Measured, indices: Sequence[int], report_stage: ReportStage | None = None) -> PruningCost:
    """Measure what removing layers together costs.

    Args:
        measured: the model, and what it is measured on.
        indices: of the layers, from 0.
        report_stage: progress.

    Raises:
        InputError: it cannot be measured on this, or the model does not run without the layers.
    """
    stack = find_block_stack(measured.model, measured.stack)
    batches, _ = faithful_batches(measured.model, measured.batches, None)
    performance = measured.performance
    beside = performance.beside if isinstance(performance, Loss) else {}
    measure = PerformanceDrop(lambda num_blocks: [_without(indices, num_blocks)], performance, beside=beside)
    observe(stack, batches, [measure], tick=Steps("what is lost", 2 * len(batches), report_stage))
    if measure.failures:
        raise InputError(f"without these layers the model does not run ({measure.failures[1]})")
    before, after, difference = (
        estimates_of(found)[0] for found in (measure.whole(), measure.changed(), measure.drop())
    )
    targets = _targets(batches)
    return PruningCost(
        performance.name,
        before,
        after,
        difference,
        None if targets is None else float(np.mean(own_frequency_losses(targets))),
        count_tokens(batches),
        "images" if batches[0].counted is None else "tokens",
        _accuracy(measure, targets) if targets is not None and "accuracy" in beside else None,
    )


def _accuracy(measure: PerformanceDrop, targets: Predictions) -> AccuracyCost:
    """What a share of wrong answers says of right ones."""
    drop = measure.drop("accuracy").through(torch.neg)
    before, after, difference = (
        estimates_of(found)[0]
        for found in (
            measure.whole("accuracy").complement(),
            measure.changed("accuracy").complement(),
            replace(drop, low=drop.high, high=drop.low),
        )
    )
    return AccuracyCost(before, after, difference, float(np.bincount(targets.targets).max() / len(targets)))


def _without(indices: Sequence[int], num_blocks: int) -> Intervention:
    first = min(indices)
    return Intervention(first, tuple(index for index in range(first, num_blocks) if index not in set(indices)))


def _targets(batches: Sequence[ModelBatch]) -> Predictions | None:
    """What is to be predicted: tokens, or classes; None: nothing is."""
    predictions = [
        Predictions.of(batch.targets.reshape(rows, -1), batch.targets.reshape(rows, -1), batch.documents[:, None])
        for batch in batches
        if batch.targets is not None
        for rows in [len(batch.targets)]
    ]
    return Predictions.joined(predictions) if predictions else None
