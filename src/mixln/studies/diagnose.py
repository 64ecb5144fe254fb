"""Every measure of a model, put together."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace

import torch
from torch import nn
from transformers import PreTrainedTokenizerBase

from mixln.depth.batches import ModelBatch, count_tokens, first_tokens
from mixln.depth.forward import evaluation_mode, model_device
from mixln.depth.observation import observe
from mixln.depth.performance import EmbeddingTurn, LanguageModelLoss, Performance
from mixln.depth.stack import BlockStack, find_block_stack, recording
from mixln.depth.sublayers import SublayerFinder
from mixln.depth.texts import longest_window, text_batches, text_windows
from mixln.errors import InputError
from mixln.models.causal import is_causal_language_model
from mixln.report.diagnosis import DepthReport, ModelDiagnosis
from mixln.studies.diagnosis_config import MEASURE_NAMES, DiagnosisConfig
from mixln.studies.diagnosis_gradients import with_gradient_norms
from mixln.studies.diagnosis_interpretability import with_interpretability
from mixln.studies.diagnosis_measures import Ingredients, MeasureKind
from mixln.studies.diagnosis_scores import Score, with_scores
from mixln.studies.machine import describe_machine
from mixln.studies.stages import Reported, ReportStage
from mixln.version import __version__

__all__ = [
    "MEASURE_NAMES",
    "DiagnosisConfig",
    "diagnose",
    "diagnose_batches",
    "diagnose_model",
    "make_report",
]


Keep = Callable[[ModelDiagnosis], None]
"""Puts a diagnosis that is not finished where it is safe."""


def diagnose_model(
    model: nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    texts: Iterable[str],
    config: DiagnosisConfig | None = None,
    *,
    name: str = "",
    autocast_dtype: torch.dtype | None = None,
    scores: Mapping[str, Score] | None = None,
    report_stage: ReportStage | None = None,
    keep: Keep | None = None,
) -> ModelDiagnosis:
    """Find out which layers of a language model or text encoder earn their place.

    Args:
        model: a Hugging Face model: of a causal language model the loss is measured, of any other that gives
            `last_hidden_state` the pooled embedding.
        tokenizer: of the model.
        texts: one document each.
        config: how to measure.
        name: of the model, for the report; by default what it was loaded from.
        autocast_dtype: autocast to this; None: the model's own precision.
        scores: further measures of performance, each a function of the model (higher is better), called once for the
            whole model and once without each layer. It gives one number, or one for each item, of which the mean is
            shown with intervals over items: series `score_<name>` and `removal_<name>`.
        report_stage: progress.
        keep: told what has been found so far after a stage, in case it ends here.

    Raises:
        InputError: the config makes no sense, the blocks are not found, or the text is shorter than a window.
    """
    config = (config or DiagnosisConfig()).check()
    model_config = getattr(model, "config", None)
    predicts_next = is_causal_language_model(model)
    window = longest_window(tokenizer, model_config, config.window)
    windows = text_windows(
        tokenizer, texts, window, config.max_tokens, config.max_documents, special_tokens=not predicts_next
    )
    padding_id = next(
        (token for token in (tokenizer.pad_token_id, tokenizer.eos_token_id) if isinstance(token, int)), 0
    )
    batches = text_batches(windows, config.batch_size, padding_id, predicts_next=predicts_next)
    return diagnose_batches(
        model,
        batches,
        LanguageModelLoss() if predicts_next else EmbeddingTurn(),
        config,
        name=name or str(getattr(model_config, "name_or_path", "") or type(model).__name__),
        autocast_dtype=autocast_dtype,
        scores=scores,
        report_stage=report_stage,
        keep=keep,
    )


def diagnose(
    model: nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    texts: Iterable[str],
    config: DiagnosisConfig | None = None,
    *,
    autocast_dtype: torch.dtype | None = None,
    scores: Mapping[str, Score] | None = None,
) -> DepthReport:
    """Find out which layers of a model earn their place; `diagnose(...).save("out")` writes the report.

    See `diagnose_model` for the arguments and errors.
    """
    found = diagnose_model(model, tokenizer, texts, config, autocast_dtype=autocast_dtype, scores=scores)
    return make_report([found], text="given in Python")


def make_report(models: list[ModelDiagnosis], *, text: str, command: str = "") -> DepthReport:
    """Put diagnoses on the same text side by side."""
    return DepthReport(models=models, text=text, machine=describe_machine(), command=command, version=__version__)


def diagnose_batches(
    model: nn.Module,
    batches: Sequence[ModelBatch],
    performance: Performance | None,
    config: DiagnosisConfig | None = None,
    *,
    name: str = "",
    autocast_dtype: torch.dtype | None = None,
    scores: Mapping[str, Score] | None = None,
    report_stage: ReportStage | None = None,
    keep: Keep | None = None,
) -> ModelDiagnosis:
    """As `diagnose`, on batches of any kind (images, say).

    Args:
        model: any model whose blocks are found.
        batches: what to run it on; read several times.
        performance: what removing a layer costs; None: that is not measured.
        config: how to measure; `window`, `batch_size` and `max_tokens` play no part.
        name: of the model.
        autocast_dtype: autocast to this; None: the model's own precision.
        scores: as in `diagnose`.
        report_stage: progress.
        keep: as in `diagnose_model`.

    Raises:
        InputError: the config makes no sense, or the blocks are not found.
    """
    config = (config or DiagnosisConfig()).check()
    started = time.perf_counter()
    if not batches:
        raise InputError("there are no batches to measure on: give at least one")
    stack = find_block_stack(model, config.layers)
    given = Ingredients(performance, _find_sublayers(stack, batches[0]))
    wanted = config.measures_of(len(stack.layers))
    kinds, notes = _possible(wanted, given)
    few = first_tokens(batches, config.performance_tokens)
    diagnosis = ModelDiagnosis(
        model=name or type(model).__name__,
        kind=type(model).__name__,
        layers_name=stack.name,
        block_kind=type(stack.layers[0]).__name__,
        num_layers=len(stack.layers),
        num_parameters=_count(model),
        layer_parameters=[_count(block) for block in stack.layers],
        tokens=count_tokens(batches),
        performance_tokens=count_tokens(few) if any(kind.needs_performance for kind in kinds) else 0,
        documents=len({document for batch in batches for document in batch.documents.tolist()}),
        performance="" if performance is None else performance.name,
        notes=notes,
    )
    # first, since they are the caller's own: if one fails, nothing is lost
    diagnosis = with_scores(diagnosis, stack, scores or {}, report_stage)
    keep = keep or (lambda _: None)
    for stage, some, many_passes in (("hidden states", batches, False), ("interventions", few, True)):
        measures = [(kind, kind.build(given)) for kind in kinds if kind.takes_many_passes is many_passes]
        if measures:
            reported = Reported(some, stage, report_stage)
            observe(stack, reported, [measure for _, measure in measures], autocast_dtype=autocast_dtype)
        for kind, measure in measures:
            for result in kind.results:
                diagnosis = result(measure, diagnosis)
        if measures:
            keep(_unfinished(diagnosis))
    if isinstance(performance, LanguageModelLoss):
        some = first_tokens(batches, config.gradient_tokens)
        for series in config.gradient_series():
            reported = Reported(some, series.replace("_", " "), report_stage, passes=2)
            diagnosis = with_gradient_norms(diagnosis, series, stack, reported, autocast_dtype)
    if config.interpretability_tokens:
        keep(_unfinished(diagnosis))
        some = first_tokens(batches, config.interpretability_tokens)
        diagnosis = with_interpretability(diagnosis, stack, some, config.interpretability_prompts, report_stage)
    return replace(diagnosis, seconds=time.perf_counter() - started)


def _unfinished(diagnosis: ModelDiagnosis) -> ModelDiagnosis:
    note = "The diagnosis did not come to its end: what is missing was not measured."
    return replace(diagnosis, notes=[*diagnosis.notes, note])


def _find_sublayers(stack: BlockStack, batch: ModelBatch) -> SublayerFinder:
    """Find the sublayers of all blocks, by what runs for one row.

    Raises:
        InputError: the blocks do not feed each other, which is better known before hours of work.
    """
    finder = SublayerFinder()
    with evaluation_mode(stack.model), torch.no_grad(), finder.watch(stack), recording(stack):
        stack.model(**batch.rows(0, 1).arguments_on(model_device(stack.model)))
    return finder


def _possible(kinds: list[MeasureKind], given: Ingredients) -> tuple[list[MeasureKind], list[str]]:
    """The measures that can be taken, and notes that say why the others cannot."""
    notes: list[str] = []
    if given.performance is None and any(kind.needs_performance for kind in kinds):
        kinds = [kind for kind in kinds if not kind.needs_performance]
        notes.append("No performance was given, so what removing a layer costs was not measured.")
    if not given.sublayers.is_complete() and any(kind.needs_sublayers for kind in kinds):
        kinds = [kind for kind in kinds if not kind.needs_sublayers]
        notes.append(
            "Attention and feed-forward of the blocks could not be told apart by the names of their modules, so "
            "measures of sublayers and norms were left out."
        )
    return kinds, notes


def _count(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())
