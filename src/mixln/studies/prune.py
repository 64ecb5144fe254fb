"""Which layers to remove from a checkpoint: as they are named, or chosen by a measure."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

from torch import nn
from transformers import PreTrainedModel

from mixln.data import open_corpus
from mixln.data.cache import Report
from mixln.data.measured_images import read_measured_images
from mixln.errors import InputError
from mixln.measure.pruning import check_removable
from mixln.models.anatomy import BlockStack, find_block_stack
from mixln.models.inputs import require_input
from mixln.report.diagnosis import ModelDiagnosis
from mixln.report.pruning_cost import PruningCost
from mixln.studies.medium import Medium, of_images, of_texts
from mixln.studies.pruning_cost import pruning_cost
from mixln.studies.pruning_request import Criterion, PruningRequest
from mixln.studies.stages import ReportStage


def measures_for(criterion: Criterion) -> tuple[str, ...]:
    """The measures that a criterion needs."""
    return ("removal",) if criterion == "removal" else ("similarity",)


def choose_layers(diagnosis: ModelDiagnosis, count: int, criterion: Criterion, *, consecutive: bool) -> list[int]:
    """Choose the layers whose removal should do least harm.

        angular     a run: the smallest d(l, count) (Gromov et al. 2024); a set: the smallest d(l, 1)
        influence   the smallest block influences (ShortGPT: Men et al. 2024); a run: the smallest sum
        removal     the smallest performance drops of single layers; a run: of the run together

    Args:
        diagnosis: of the model, with `measures_for(criterion)`; for a run by removal with the series
            `removal_of_<count>`.
        count: how many layers.
        criterion: what to go by.
        consecutive: whether they must follow one another.

    Returns:
        Indices (from 0), in order.

    Raises:
        InputError: the criterion was not measured, or too few removals leave a model with finite numbers.
    """
    length = count if consecutive else 1
    try:
        cost = _costs(diagnosis, length, criterion)
    except LookupError as error:
        reasons = " ".join(diagnosis.notes) or "it was not measured."
        raise InputError(f"layers cannot be chosen by {criterion}. {reasons} Choose another `by`") from error
    # a model that does not run, or overflows, is no choice
    possible = [index for index, value in enumerate(cost) if math.isfinite(value)]
    if len(possible) * length < count:
        raise InputError(
            f"layers cannot be chosen by {criterion}: the model gives finite numbers without any one of "
            f"{len(possible)} of them, but not without the others. Name layers with `layers`"
        )
    cheapest = sorted(possible, key=cost.__getitem__)[: count // length]
    return sorted(index for first in cheapest for index in range(first, first + length))


def _costs(diagnosis: ModelDiagnosis, length: int, criterion: Criterion) -> list[float]:
    """Of each run of `length` layers."""
    if criterion == "angular":
        return diagnosis.series["angular_distance"].triangle()[length - 1]
    if criterion == "influence":
        influence = diagnosis.series["block_influence"].values
        return [sum(influence[start : start + length]) for start in range(diagnosis.num_layers + 1 - length)]
    return diagnosis.series["removal" if length == 1 else f"removal_of_{length}"].values


def describe_layers(indices: Sequence[int], stack: BlockStack) -> str:
    """What will be removed, in words that leave no doubt about where counting begins.

    Args:
        indices: of the layers, from 0.
        stack: the layers.
    """
    numbers = ", ".join(str(index + 1) for index in indices)
    zero_based = ", ".join(f"{stack.name}[{index}]" for index in indices)
    return (
        f"removing {len(indices)} of {len(stack.layers)} layers: {numbers} (counted from 1, both ends included; in "
        f"Python: {zero_based})"
    )


def find_prunable_stack(model: nn.Module, name: str | None = None) -> BlockStack:
    """Find the blocks of a model as `find_block_stack` does, its errors in the words of a `PruningRequest`."""
    return find_block_stack(model, name)


def select_layers(
    request: PruningRequest,
    model: PreTrainedModel,
    stack: BlockStack,
    say: Report,
    report_stage: ReportStage | None = None,
) -> list[int]:
    """Return the indices (from 0) of the layers that a request means, measuring if it has to.

    Args:
        request: what to remove.
        model: the whole model.
        stack: of the model.
        say: told what was left out of the text or images.
        report_stage: progress.

    Raises:
        InputError: they are not there, or the text or images cannot be measured on.
    """
    num_layers = len(stack.layers)
    if request.indices is not None:
        check_removable(request.indices, num_layers)
        return list(request.indices)
    if request.drop > num_layers:
        raise InputError(f"{request.drop} layers are to be removed, and the model has {num_layers}")
    check_removable(range(request.drop), num_layers)
    require_input(model, "text" if request.images is None else "images")
    medium = medium_of(request)
    for note in medium.notes:
        say(note)
    measured = medium.companion.part(model)
    config = replace(
        request.measurement,
        performance_tokens=request.measurement.max_tokens,
        performance_images=request.measurement.max_images,
        run_lengths=(request.drop,) if request.by == "removal" and request.consecutive and request.drop > 1 else (),
        measures=measures_for(request.by),
        stack=_name_in(measured, stack),
    )
    companion = medium.companion.open(request.source)
    diagnosis = medium.diagnose(measured, companion, config, report_stage=report_stage)
    if not diagnosis.has_learned:
        say(f"warning: {' '.join(diagnosis.shown.sentences)} So the choice of layers to remove has no meaning either.")
    return choose_layers(diagnosis, request.drop, request.by, consecutive=request.consecutive)


def measure_cost(
    request: PruningRequest,
    model: PreTrainedModel,
    stack: BlockStack,
    indices: Sequence[int],
    say: Report,
    report_stage: ReportStage | None = None,
) -> PruningCost | None:
    """Return what removing layers costs on what a request names; None, with a word, if that cannot be measured.

    Args:
        request: which text or images, and how much of it.
        model: the whole model.
        stack: of the model.
        indices: of the layers, from 0.
        say: told why it cannot be measured.
        report_stage: progress.
    """
    try:
        require_input(model, "text" if request.images is None else "images")
        medium = medium_of(request)
        part = medium.companion.part(model)
        config = replace(request.measurement, stack=_name_in(part, stack))
        measured = medium.prepare(part, medium.companion.open(request.source), config, report_stage)
        for note in measured.notes:
            say(note)
        return pruning_cost(measured, indices, report_stage)
    except InputError as error:
        say(f"the cost of removing these layers was not measured: {error}")
        return None


def medium_of(request: PruningRequest) -> Medium:
    """Return what a request is measured on.

    Raises:
        InputError: it cannot be read.
    """
    if request.images is not None:
        return of_images(request.images.source, read_measured_images(request.images))
    corpus = open_corpus(request.text, text_field=request.text_field)
    texts = list(corpus.first(request.measurement.max_documents))
    skipped = corpus.left_out.describe()
    return of_texts(request.text, texts, [f"left out of {corpus.name}: {skipped}"] if skipped else [])


def _name_in(part: nn.Module, stack: BlockStack) -> str:
    """The name of a model's blocks in a part of it.

    Raises:
        InputError: they do not lie in it.
    """
    for name, module in part.named_modules():
        if module is stack.layers:
            return name
    raise InputError(
        f"the blocks {stack.name} do not lie in the {type(part).__name__} that would be measured. Name the "
        "layers to remove with `layers`"
    )
