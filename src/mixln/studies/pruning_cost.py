"""Measuring what removing layers costs, all of them together."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
from torch import nn
from transformers import PreTrainedTokenizerBase

from mixln.errors import InputError
from mixln.measure.batches import ModelBatch, count_tokens
from mixln.measure.frequencies import Predictions, own_frequency_losses
from mixln.measure.interventions import Intervention
from mixln.measure.observation import observe
from mixln.measure.padding import faithful_batches
from mixln.measure.performance_drop import PerformanceDrop
from mixln.models.anatomy import find_block_stack
from mixln.report.pruning_cost import PruningCost
from mixln.studies.diagnosis_config import DiagnosisConfig
from mixln.studies.measured_text import measured_text
from mixln.studies.measuring import estimates_of
from mixln.studies.stages import ReportStage, Steps


def pruning_cost(
    model: nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    texts: Iterable[str],
    indices: Sequence[int],
    config: DiagnosisConfig,
    report_stage: ReportStage | None = None,
) -> PruningCost:
    """Measure what removing layers together costs.

    Args:
        model: a Hugging Face model; see `mixln.studies.diagnose.diagnose_model`.
        tokenizer: of the model.
        texts: one document each.
        indices: of the layers, from 0.
        config: how much text, in which pieces, and the name of the blocks.
        report_stage: progress.

    Raises:
        InputError: the text cannot be measured on, or the model does not run without the layers.
    """
    text = measured_text(model, tokenizer, texts, config)
    stack = find_block_stack(text.model, text.stack)
    batches, _ = faithful_batches(text.model, text.batches, None)
    measure = PerformanceDrop(lambda num_blocks: [_without(indices, num_blocks)], text.performance)
    observe(stack, batches, [measure], tick=Steps("what is lost", 2 * len(batches), report_stage))
    if measure.failures:
        raise InputError(f"without these layers the model does not run ({measure.failures[1]})")
    before, after, difference = (
        estimates_of(found)[0] for found in (measure.whole(), measure.changed(), measure.drop())
    )
    frequencies = _frequencies(batches)
    return PruningCost(text.performance.name, before, after, difference, frequencies, count_tokens(batches))


def _without(indices: Sequence[int], num_blocks: int) -> Intervention:
    first = min(indices)
    return Intervention(first, tuple(index for index in range(first, num_blocks) if index not in set(indices)))


def _frequencies(batches: Sequence[ModelBatch]) -> float | None:
    """The loss of the targets' own frequencies; None: there are no targets."""
    predictions = [
        Predictions.of(batch.arguments["input_ids"], batch.targets, batch.documents[:, None])
        for batch in batches
        if batch.targets is not None
    ]
    return float(np.mean(own_frequency_losses(Predictions.joined(predictions)))) if predictions else None
