"""Every measure of a model, put together."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import cache, partial
from importlib import import_module
from pathlib import Path
from pkgutil import iter_modules

import torch
from torch import nn
from transformers import PreTrainedTokenizerBase

from mixln.errors import InputError
from mixln.measure.batches import ModelBatch, count_tokens, first_tokens
from mixln.measure.forward import autocast
from mixln.measure.observation import Observation, observed
from mixln.measure.padding import faithful_batches, sees_what_follows
from mixln.measure.performance import LanguageModelLoss, Performance
from mixln.measure.proof import ProvenExecution
from mixln.measure.sublayers import SublayerFinder
from mixln.models.anatomy import BlockStack, find_block_stack, lists_of_blocks
from mixln.models.causal import without_heads
from mixln.models.finite import require_finite_parameters
from mixln.modes import evaluation_mode
from mixln.report.depth_report import DepthReport
from mixln.report.diagnosis import ModelDiagnosis
from mixln.signatures import checked_arguments
from mixln.studies import interpretability, measures
from mixln.studies.diagnosis_config import DiagnosisConfig, registered_measures
from mixln.studies.diagnosis_scores import Score, Scores
from mixln.studies.kept_measures import KeptMeasures, identity_of
from mixln.studies.machine import describe_machine
from mixln.studies.measured_text import measured_text
from mixln.studies.measures.removal import removal_of_runs
from mixln.studies.measuring import (
    Computed,
    Entry,
    Found,
    Given,
    Observed,
    num_steps,
    observe_built,
    presented,
)
from mixln.studies.stages import ReportStage, Steps
from mixln.version import __version__

Keep = Callable[[ModelDiagnosis], None]
"""Puts a diagnosis that is not finished where it is safe."""


def all_entries() -> tuple[Entry, ...]:
    """All measures by rank: those of this library, and those of `register_measure`."""
    return tuple(sorted((*_own_entries(), *registered_measures()), key=lambda entry: entry.rank))


@cache
def _own_entries() -> tuple[Entry, ...]:
    """The `ENTRY` of every module of `mixln.studies.measures` and `mixln.studies.interpretability`.

    Raises:
        ValueError: an entry has another name than its file, by which it is chosen.
    """
    found: list[Entry] = []
    for package in (measures, interpretability):
        for module in iter_modules(package.__path__, f"{package.__name__}."):
            entry = import_module(module.name).ENTRY
            if entry.name != module.name.rpartition(".")[2]:
                raise ValueError(f"the entry of {module.name} is named {entry.name!r}: give it its file's name")
            found.append(entry)
    return tuple(found)


@checked_arguments
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
    folder: str | Path | None = None,
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
            whole model and once without each layer. It gives one number, or one for each item, whose mean is
            shown with intervals over items: series `score:<name>` and `removal:<name>`.
        report_stage: progress.
        keep: told what has been found so far after each measure, in case it ends here.
        folder: where every measure that is finished is kept. The same diagnosis takes it from there when it is called
            again: of the same weights, text, config and scores, on the same machine, by the same versions.

    Raises:
        InputError: the config makes no sense, the blocks are not found, or the text is shorter than a window.
    """
    config = config or DiagnosisConfig()
    text = measured_text(model, tokenizer, texts, config, whole=bool(scores))
    found = diagnose_batches(
        text.model,
        text.batches,
        text.performance,
        replace(config, stack=text.stack),
        name=name or str(getattr(getattr(model, "config", None), "name_or_path", "") or type(model).__name__),
        autocast_dtype=autocast_dtype,
        scores=scores,
        report_stage=report_stage,
        keep=keep,
        folder=folder,
    )
    if not text.encoder:
        return found
    note = f"Of this {type(model).__name__} the encoder alone was run: its decoder would need a text of its own."
    return replace(found, layers_name=f"{text.encoder}.{found.layers_name}", notes=[note, *found.notes])


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
    folder: str | Path | None = None,
) -> ModelDiagnosis:
    """As `diagnose`, on batches of any kind (images, say).

    Args:
        model: any model whose blocks are found.
        batches: what to run it on; read several times.
        performance: what removing a layer costs; None: that is not measured. One that needs no head is measured on
            the model without its heads.
        config: how to measure; `window`, `batch_size` and `max_tokens` play no part.
        name: of the model.
        autocast_dtype: autocast to this; None: the model's own precision.
        scores: as in `diagnose`.
        report_stage: progress.
        keep: as in `diagnose_model`.
        folder: as in `diagnose_model`.

    Raises:
        InputError: the config makes no sense, or the blocks are not found.
    """
    config = config or DiagnosisConfig()
    started = time.perf_counter()
    if not batches:
        raise InputError("there are no batches to measure on: give at least one")
    require_finite_parameters(model)
    part, prefix = (model, "") if performance is not None and performance.needs_head else without_heads(model)
    stack = find_block_stack(part, config.stack and config.stack.removeprefix(prefix))
    batches, padding_note = faithful_batches(part, batches, autocast_dtype)
    sublayers, first = _first_look(stack, batches[0], autocast_dtype)
    given = Given(stack, performance, ProvenExecution(sublayers), config, autocast_dtype, report_stage)
    entries, notes = _possible(_observed(config, len(stack.layers), performance), given, first)
    if isinstance(performance, LanguageModelLoss) and sees_what_follows(part, batches[0], autocast_dtype):
        notes.insert(
            0,
            f"A {type(model).__name__} sees the whole text, also the token that is to be predicted: its loss is no "
            "measure of a language model.",
        )
    few = first_tokens(batches, config.performance_tokens)
    diagnosis = ModelDiagnosis(
        model=name or type(model).__name__,
        kind=type(model).__name__,
        layers_name=prefix + stack.name,
        block_kind=type(stack.layers[0]).__name__,
        num_layers=len(stack.layers),
        num_parameters=_count(model),
        layer_parameters=[_count(block) for block in stack.layers],
        tokens=count_tokens(batches),
        performance_tokens=count_tokens(few) if any(entry.needs_performance for entry in entries) else 0,
        unit="images" if batches[0].counted is None else "tokens",
        documents=len({document for batch in batches for document in batch.documents.tolist()}),
        performance="" if performance is None else performance.name,
        notes=[*filter(None, [padding_note]), *notes],
    )
    scored = Scores(scores or {})
    kept = KeptMeasures(None if folder is None else Path(folder), partial(identity_of, model, batches, given))

    def with_found(found: Found) -> ModelDiagnosis:
        with_it = found.added_to(diagnosis)
        if keep is not None:
            note = "The diagnosis did not come to its end: what is missing was not measured."
            unfinished = replace(with_it, notes=[*with_it.notes, note])
            keep(presented(unfinished, [*all_entries(), scored]))
        return with_it

    # first, since they are the caller's own: if one fails, nothing is lost
    whole = BlockStack(model, prefix + stack.name, stack.layers)
    for name, score in (scores or {}).items():
        identity, compute = getattr(score, "identity", None), partial(scored.compute, name, whole, report_stage)
        diagnosis = with_found(compute() if identity is None else kept.take(f"{name} {identity}", compute))
    for stage, some, many_passes in (("hidden states", batches, False), ("interventions", few, True)):
        of_stage = [entry for entry in entries if entry.takes_many_passes is many_passes]
        for found in _observe(of_stage, given, some, stage, kept):
            diagnosis = with_found(found)
    for entry in all_entries():
        if isinstance(entry, Computed) and entry.is_wanted(given):
            diagnosis = with_found(kept.take(entry.name, partial(entry.compute, given, batches)))
    diagnosis = replace(diagnosis, seconds=time.perf_counter() - started + kept.seconds)
    return presented(diagnosis, [*all_entries(), scored])


def _observe(
    entries: Sequence[Observed], given: Given, batches: Sequence[ModelBatch], stage: str, kept: KeptMeasures
) -> Iterator[Found]:
    """Yield what the entries of a stage find, as soon as it can be kept.

    Passes that change nothing are shared by all of them. Changed models take most of the time: if measures are kept,
    each goes through the batches by itself, which costs it one plain pass, and is kept when it is finished.
    """
    built = [(entry, entry.build(given)) for entry in entries]  # all of them: they share one proof
    each = kept.is_on_disk and any(entry.takes_many_passes for entry in entries)
    parts = {entry.name: [(entry, measure)] for entry, measure in built} if each else {stage: built}
    missing = {name: part for name, part in parts.items() if part and not kept.has(name)}
    total = sum(num_steps(part, given, batches) for part in missing.values())
    steps = Steps(stage, total, given.report if missing else None)
    for name, part in parts.items():
        if part:
            yield kept.take(name, partial(observe_built, part, given, batches, steps))


def _observed(config: DiagnosisConfig, num_layers: int, performance: Performance | None) -> list[Observed]:
    """The measures of a pass that are asked for, those of runs of layers among them, and those that decide verdicts.

    Raises:
        InputError: a run is as long as the model of `num_layers`.
    """
    about = [entry for entry in all_entries() if isinstance(entry, Observed) and entry.is_about(performance)]
    entries = [entry for entry in about if config.asks_for(entry.name)]
    if any(entry.judges_layers for entry in entries):
        entries += [one for one in about if one.decides_verdicts and config.may_take(one.name) and one not in entries]
    if config.asks_for("removal"):
        if too_long := [length for length in config.run_lengths if length >= num_layers]:
            raise InputError(f"run_lengths has {too_long[0]}, and the model {num_layers} layers: leave one at least")
        entries += [removal_of_runs(length) for length in config.run_lengths]
    return entries


def _first_look(
    stack: BlockStack, batch: ModelBatch, autocast_dtype: torch.dtype | None
) -> tuple[SublayerFinder, Observation]:
    """Find the sublayers of all blocks, by what runs for one row; and that row as the blocks saw it.

    Raises:
        InputError: the blocks do not feed each other, which is better known before hours of work; or they are stages,
            each of another shape.
    """
    finder, model = SublayerFinder(), stack.model
    with evaluation_mode(model), torch.no_grad(), autocast(model, autocast_dtype), finder.watch(stack):
        seen = observed(stack, batch.rows(0, 1))
    shapes = [tuple(state.shape) for state in seen.hidden_states]
    if len(set(shapes)) > 1:
        inner = ", ".join(f"{stack.name}.{name}" for name in lists_of_blocks(stack.layers) if name)
        raise InputError(
            f"the blocks of {stack.name} change the shape of what goes through them, {shapes[0]} to {shapes[-1]}: they "
            "are stages of different widths, none of which can be taken out. "
            + (f"Name the blocks of one stage with `stack`: {inner}" if inner else "Name other blocks with `stack`")
        )
    return finder, seen


def _possible(entries: list[Observed], given: Given, first: Observation) -> tuple[list[Observed], list[str]]:
    """The measures that can be taken, and notes that say why the others cannot."""
    notes: list[str] = []
    with evaluation_mode(first.stack.model), torch.no_grad():
        reasons = {entry.name: first.reason_against([entry.measure]) for entry in entries}
    entries = [entry for entry in entries if not reasons[entry.name]]
    for reason in dict.fromkeys(filter(None, reasons.values())):
        left_out = ", ".join(name for name, own in reasons.items() if own == reason)
        notes.append(f"{reason}, so these measures were left out: {left_out}.")
    if given.performance is None and any(entry.needs_performance for entry in entries):
        entries = [entry for entry in entries if not entry.needs_performance]
        notes.append("No performance was given, so what removing a layer costs was not measured.")
    if not given.execution.sublayers.is_complete() and any(entry.needs_sublayers for entry in entries):
        entries = [entry for entry in entries if not entry.needs_sublayers]
        notes.append(
            "Attention and feed-forward of the blocks could not be told apart by the names of their modules, so "
            "measures of sublayers and norms were left out."
        )
    return entries, notes


def _count(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())
