"""What norms do to the tools of interpretability: the section of a diagnosis that is off unless it is asked for."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from mixln.depth.batches import ModelBatch
from mixln.depth.estimates import DocumentSums, Estimates
from mixln.depth.forward import IGNORED_TARGET, model_device
from mixln.depth.stack import BlockStack
from mixln.errors import InputError
from mixln.models.causal import is_causal_language_model
from mixln.normfree.attribution import LogitAttribution, attribute
from mixln.normfree.entropy_neurons import entropy_neurons
from mixln.normfree.patching import PatchingEffects, patching_effects, stream_for
from mixln.normfree.prompts import induction_prompts
from mixln.normfree.readout import read
from mixln.normfree.stream import find_stream
from mixln.report.diagnosis import (
    AttributionResult,
    EntropyNeuronsResult,
    InterpretabilityResult,
    ModelDiagnosis,
    PatchingResult,
)
from mixln.studies.stages import Reported, ReportStage

_SEGMENT = 8
"""Of the induction prompts."""


def with_interpretability(
    diagnosis: ModelDiagnosis,
    stack: BlockStack,
    batches: Sequence[ModelBatch],
    prompts: int,
    report: ReportStage | None = None,
) -> ModelDiagnosis:
    """The diagnosis with `interpretability`; what the model does not allow is left out, with a note that says why.

    Args:
        diagnosis: so far.
        stack: of the model.
        batches: of text; their tokens are also what induction prompts are drawn from.
        prompts: pairs of induction prompts.
        report: progress.
    """
    if not is_causal_language_model(stack.model):
        note = "Attribution, patching and entropy neurons are of language models: they were left out."
        return replace(diagnosis, notes=[*diagnosis.notes, note])
    found, notes = InterpretabilityResult(), [*diagnosis.notes]
    parts: tuple[tuple[str, str, Callable[[], object]], ...] = (
        ("attribution", "direct logit attribution", lambda: _attribution(stack, batches, report)),
        ("patching", "patching", lambda: _patching(stack, batches, prompts, report)),
        ("entropy_neurons", "entropy neurons", lambda: _neurons(stack, batches)),
    )
    for name, called, measure in parts:
        try:
            found = replace(found, **{name: measure()})
        except InputError as error:
            notes.append(f"No {called}: {error}.")
    return replace(diagnosis, interpretability=found, notes=notes)


def _attribution(stack: BlockStack, batches: Sequence[ModelBatch], report: ReportStage | None) -> AttributionResult:
    """At every counted token: the next one against the likeliest other."""
    device = model_device(stack.model)
    stream = find_stream(stack.model, batches[0].rows(0, 1).arguments_on(device), stack.name)
    gap, sizes, error = DocumentSums(), DocumentSums(), 0.0
    for batch in Reported(batches, "direct logit attribution", report):
        reading = read(stream, batch.arguments_on(device))
        assert batch.targets is not None
        counted = batch.targets != IGNORED_TARGET
        answers = batch.targets.clamp_min(0)
        scores = reading.logits.cpu().scatter(-1, answers[..., None], -math.inf)
        positions = torch.arange(answers.shape[1]).expand_as(answers)
        found = attribute(stream, reading, answers, scores.argmax(-1), positions)
        effect = _rows(found.direct_effect.abs().sum(-1), counted)
        gap.update(_rows(found.error.sum(-1), counted), effect, batch.documents)
        sizes.update(_rows(_by_layer(found), counted), counted.sum(1), batch.documents)
        error = max(error, found.sum_error[counted].max().item())
    whole, layers = gap.estimate(), sizes.estimate().value.tolist()
    low, high = (_or_none(end.item()) for end in (whole.low, whole.high))
    return AttributionResult(int(sizes.num_tokens), whole.value.item(), low, high, error, *layers)


def _by_layer(found: LogitAttribution) -> Tensor:
    """|c| and |DE| of the embedding and of each layer, (rows, tokens, 2, L + 1)."""
    both = torch.stack((found.contribution, found.direct_effect), -2)
    layers = both[..., 1:].unflatten(-1, (-1, 2)).sum(-1)
    return torch.cat((both[..., :1], layers), -1).abs()


def _rows(values: Tensor, counted: Tensor) -> Tensor:
    """Sums over each row's counted tokens."""
    return (values * counted.reshape(*counted.shape, *[1] * (values.ndim - 2))).sum(1)


def _patching(
    stack: BlockStack, batches: Sequence[ModelBatch], prompts: int, report: ReportStage | None
) -> PatchingResult:
    tokens = torch.cat(
        [batch.arguments["input_ids"][batch.counted_in(batch.arguments["input_ids"])] for batch in batches]
    )
    pairs = induction_prompts(tokens.tolist(), prompts, segment=_SEGMENT)
    stream = stream_for(stack.model, pairs[0], stack.name)
    found: list[PatchingEffects] = [patching_effects(stream, pair) for pair in Reported(pairs, "patching", report)]

    def joined(effects: Callable[[PatchingEffects], Tensor]) -> list[float]:
        return torch.cat([effects(one).flatten() for one in found]).tolist()

    return PatchingResult(
        [one.correlation for one in found],
        [one.slope for one in found],
        [one.error for one in found],
        joined(lambda one: one.activation),
        joined(lambda one: one.attribution),
    )


def _neurons(stack: BlockStack, batches: Sequence[ModelBatch]) -> EntropyNeuronsResult:
    found = entropy_neurons(stack.model, batches, layers=stack.name)

    def ends(estimates: Estimates) -> list[list[float | None]]:
        return [[_or_none(value) for value in end.tolist()] for end in (estimates.low, estimates.high)]

    low, high = ends(found.entropy_change)
    return EntropyNeuronsResult(
        found.neurons,
        found.weight_norm.tolist(),
        found.logit_variance.tolist(),
        found.entropy.value.item(),
        found.entropy_change.value.tolist(),
        low,
        high,
        found.entropy_change_held.value.tolist(),
        found.loss_change.value.tolist(),
        found.loss_change_held.value.tolist(),
    )


def _or_none(value: float) -> float | None:
    return None if math.isnan(value) else value
