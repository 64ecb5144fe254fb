"""Every measure of a model, put together."""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from mixln.depth.angular import triangle
from mixln.depth.batches import ModelBatch
from mixln.depth.estimates import Estimates
from mixln.depth.forward import evaluation_mode, model_device
from mixln.depth.gradients import gradient_norms
from mixln.depth.growth import StreamGrowth
from mixln.depth.interventions import Intervention, PerformanceDrop, removals, repeats, silences, swaps
from mixln.depth.jacobian import JacobianDistance
from mixln.depth.norm_scales import NormScale, NormScales
from mixln.depth.observation import Measure, observe
from mixln.depth.performance import EmbeddingTurn, LanguageModelLoss, Performance
from mixln.depth.pruning import without_blocks
from mixln.depth.similarity import Similarity
from mixln.depth.stack import BlockStack, find_block_stack
from mixln.depth.sublayers import SublayerFinder, SublayerShares
from mixln.depth.texts import longest_window, text_batches, text_windows
from mixln.errors import InputError
from mixln.models.load import CAUSAL_CLASSES
from mixln.report.diagnosis import Axis, DepthReport, ModelDiagnosis, NormScaleResult, Series
from mixln.studies.machine import describe_machine
from mixln.version import __version__

ReportStep = Callable[[str, int, int], None]
"""Called before each batch with (what is measured, batches done, batches in all)."""


@dataclass(frozen=True)
class DiagnosisConfig:
    """How a model is measured.

    Attributes:
        window: tokens of a piece of text; less if the model takes no more.
        batch_size: pieces that go through the model together; without influence on the results.
        max_tokens: of text for what one forward pass tells, taken from all documents alike.
        performance_tokens: of these, for what needs many passes: performance drops and Jacobians.
        gradient_tokens: of these, for gradient norms; 0: none.
        max_documents: to read.
        run_lengths: lengths of the runs of layers to remove, beside single layers.
        measures: names of what to measure (`MEASURE_NAMES`); None: all.
        fresh_gradients: whether gradient norms are taken of a freshly initialised model too (which is a second one in
            memory).
        layers: the name of the list of blocks, where it cannot be told.
    """

    window: int = 512
    batch_size: int = 8
    max_tokens: int = 65_536
    performance_tokens: int = 8_192
    gradient_tokens: int = 4_096
    max_documents: int = 256
    run_lengths: tuple[int, ...] = ()
    measures: tuple[str, ...] | None = None
    fresh_gradients: bool = False
    layers: str | None = None

    def check(self) -> DiagnosisConfig:
        """Return this, if it makes sense.

        Raises:
            InputError: a number is out of range, or a measure is not one.
        """
        for name, least in (
            ("window", 2),
            ("batch_size", 1),
            ("max_tokens", 2),
            ("performance_tokens", 2),
            ("max_documents", 1),
        ):
            if getattr(self, name) < least:
                raise InputError(f"{name} must be at least {least}, not {getattr(self, name)}")
        if self.gradient_tokens < 0:
            raise InputError(f"gradient_tokens must be at least 0, not {self.gradient_tokens}")
        if any(length < 2 for length in self.run_lengths):
            raise InputError("run_lengths must be 2 or more: single layers are removed anyway")
        for name in self.measures or ():
            if name not in MEASURE_NAMES:
                raise InputError(f"there is no measure {name!r}. There are: {', '.join(MEASURE_NAMES)}")
        if self.measures and "gradient_norm_at_init" in self.measures and not self.fresh_gradients:
            raise InputError("gradient_norm_at_init needs a freshly initialised model: add --fresh_gradients true")
        return self


@dataclass(frozen=True)
class SeriesKind:
    """A series that a measure gives: see `mixln.report.diagnosis.Series`."""

    name: str
    axis: Axis
    unit: str
    read: Callable[[Any], Estimates]


@dataclass(frozen=True)
class MeasureKind:
    """A measure and the series that it gives.

    Attributes:
        name: to choose it by.
        build: makes it, for a performance.
        series: what is read from it at the end.
        needs_performance: whether it measures what something costs.
        takes_many_passes: whether it runs over `performance_tokens`, or over all.
        needs_sublayers: whether it needs every block's attention and feed-forward to be told apart.
    """

    name: str
    build: Callable[[Performance], Measure]
    series: tuple[SeriesKind, ...] = ()
    needs_performance: bool = False
    takes_many_passes: bool = False
    needs_sublayers: bool = False


def _drops(
    name: str, axis: Axis, family: Callable[[int], Iterable[Intervention]], *, of_sublayers: bool = False
) -> MeasureKind:
    return MeasureKind(
        name,
        lambda performance: PerformanceDrop(family, performance),
        (SeriesKind(name, axis, _UNIT_OF_PERFORMANCE, PerformanceDrop.drop),),
        needs_performance=True,
        takes_many_passes=True,
        needs_sublayers=of_sublayers,
    )


_UNIT_OF_PERFORMANCE = "performance"

MEASURES: list[MeasureKind] = [
    MeasureKind(
        "similarity",
        lambda _: Similarity(),
        (SeriesKind("block_influence", "layer", "1 - cosine", Similarity.block_influence),),
    ),
    MeasureKind(
        "growth",
        lambda _: StreamGrowth(),
        (
            SeriesKind("variance", "state", "squared units of the stream", StreamGrowth.variance),
            SeriesKind("rms", "state", "units of the stream", StreamGrowth.rms),
            SeriesKind("norm", "state", "units of the stream", StreamGrowth.norm),
        ),
    ),
    MeasureKind(
        "sublayer_shares",
        lambda _: SublayerShares(),
        (
            SeriesKind("attention_share", "layer", "|F| / |x|", lambda found: found.share("attention")),
            SeriesKind("feed_forward_share", "layer", "|F| / |x|", lambda found: found.share("feed_forward")),
        ),
        needs_sublayers=True,
    ),
    MeasureKind("norm_scales", lambda _: NormScales(), needs_sublayers=True),
    _drops("removal", "layer", removals()),
    _drops("attention_removal", "layer", silences("attention"), of_sublayers=True),
    _drops("feed_forward_removal", "layer", silences("feed_forward"), of_sublayers=True),
    _drops("swap", "first_of_pair", swaps),
    _drops("repeat", "layer", repeats),
    MeasureKind(
        "jacobian",
        lambda _: JacobianDistance(),
        (SeriesKind("jacobian_distance", "layer", "|J - I| / |I|", JacobianDistance.distance),),
        takes_many_passes=True,
    ),
]
"""Every measure of a pass. One more is one more entry."""

GRADIENT_SERIES = ("gradient_norm", "gradient_norm_at_init")

MEASURE_NAMES = (*(kind.name for kind in MEASURES), *GRADIENT_SERIES)
"""What `DiagnosisConfig.measures` can name."""


def removal_of_runs(length: int) -> MeasureKind:
    """The performance drops of removing each run of `length` layers."""
    return _drops(f"removal_of_{length}", "first_of_run", removals(length))


def diagnose_model(
    model: nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    texts: Iterable[str],
    config: DiagnosisConfig | None = None,
    *,
    name: str = "",
    autocast_dtype: torch.dtype | None = None,
    scores: Mapping[str, Callable[[nn.Module], float]] | None = None,
    report_step: ReportStep | None = None,
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
            whole model and once without each layer: series `removal_<name>`, without intervals.
        report_step: progress.

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
        report_step=report_step,
    )


def diagnose(
    model: nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    texts: Iterable[str],
    config: DiagnosisConfig | None = None,
    *,
    autocast_dtype: torch.dtype | None = None,
    scores: Mapping[str, Callable[[nn.Module], float]] | None = None,
) -> DepthReport:
    """Find out which layers of a model earn their place; `diagnose(...).save("out")` writes the report.

    See `diagnose_model` for the arguments and errors.
    """
    found = diagnose_model(model, tokenizer, texts, config, autocast_dtype=autocast_dtype, scores=scores)
    return make_report([found], text="given in Python")


def make_report(models: list[ModelDiagnosis], *, text: str, command: str = "") -> DepthReport:
    """Put diagnoses on the same text side by side."""
    return DepthReport(models=models, text=text, machine=describe_machine(), command=command, version=__version__)


def is_causal_language_model(model: nn.Module) -> bool:
    """Whether a Hugging Face model predicts the next token: its class ends in `ForCausalLM` or `LMHeadModel`."""
    return type(model).__name__.endswith(CAUSAL_CLASSES)


def diagnose_batches(
    model: nn.Module,
    batches: Sequence[ModelBatch],
    performance: Performance | None,
    config: DiagnosisConfig | None = None,
    *,
    name: str = "",
    autocast_dtype: torch.dtype | None = None,
    scores: Mapping[str, Callable[[nn.Module], float]] | None = None,
    report_step: ReportStep | None = None,
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
        report_step: progress.

    Raises:
        InputError: the config makes no sense, or the blocks are not found.
    """
    config = (config or DiagnosisConfig()).check()
    started = time.perf_counter()
    if not batches:
        raise InputError("there are no batches to measure on: give at least one")
    stack = find_block_stack(model, config.layers)
    notes: list[str] = []
    wanted = _wanted(config, stack, batches[0], performance, notes)
    few = first_tokens(batches, config.performance_tokens)
    found: list[tuple[MeasureKind, Measure]] = []
    for what, some, many_passes in (("hidden states", batches, False), ("interventions", few, True)):
        kinds = [kind for kind in wanted if kind.takes_many_passes is many_passes]
        if not kinds:
            continue
        # a measure of performance is never built without one
        built = [(kind, kind.build(performance or LanguageModelLoss())) for kind in kinds]
        measures = [measure for _, measure in built]
        observe(
            model,
            _reporting(some, what, report_step),
            measures,
            layers=config.layers,
            autocast_dtype=autocast_dtype,
        )
        found += built
    unit = "" if performance is None else performance.name
    series = {kind.name: to_series(kind, measure, unit) for measures, measure in found for kind in measures.series}
    if isinstance(performance, LanguageModelLoss) and config.gradient_tokens:
        some = first_tokens(batches, config.gradient_tokens)
        for series_name, weights in _gradient_models(model, config):
            report = _reporting(some, series_name.replace("_", " "), report_step)
            norms = gradient_norms(weights, list(report), layers=config.layers, autocast_dtype=autocast_dtype)
            series[series_name] = _as_series(series_name, "layer", "nats per token and unit of weight", norms)
    for score_name, score in (scores or {}).items():
        series[f"removal_{score_name}"] = _score_series(stack, score_name, score, report_step)
    drops = [measure for _, measure in found if isinstance(measure, PerformanceDrop)]
    whole = drops[0].whole().value.item() if drops else None
    similarity = next((measure for _, measure in found if isinstance(measure, Similarity)), None)
    distance = None if similarity is None else similarity.angular_distance()
    norm_scales = next((measure for _, measure in found if isinstance(measure, NormScales)), None)
    return ModelDiagnosis(
        model=name or type(model).__name__,
        kind=type(model).__name__,
        layers_name=stack.name,
        block_kind=type(stack.layers[0]).__name__,
        num_layers=len(stack.layers),
        num_parameters=_count(model),
        layer_parameters=[_count(block) for block in stack.layers],
        tokens=count_tokens(batches),
        performance_tokens=count_tokens(few) if drops else 0,
        documents=len({document for batch in batches for document in batch.documents.tolist()}),
        performance=unit,
        performance_of_whole=whole,
        series=series,
        angular_distance=[] if distance is None else triangle(distance.value),
        angular_distance_low=[] if distance is None else [_or_none(row) for row in triangle(distance.low)],
        angular_distance_high=[] if distance is None else [_or_none(row) for row in triangle(distance.high)],
        norm_scales=[] if norm_scales is None else [_norm_scale(scale) for scale in norm_scales.scales()],
        log10_gradient_factor=(
            None if norm_scales is None else norm_scales.log_gradient_factor().value.item() / math.log(10)
        ),
        notes=notes,
        seconds=time.perf_counter() - started,
    )


def _wanted(
    config: DiagnosisConfig, stack: BlockStack, first: ModelBatch, performance: Performance | None, notes: list[str]
) -> list[MeasureKind]:
    """The measures to take; what cannot be is left out with a note."""
    kinds = [kind for kind in MEASURES if config.measures is None or kind.name in config.measures]
    if config.measures is None or "removal" in config.measures:
        if too_long := [length for length in config.run_lengths if length >= len(stack.layers)]:
            raise InputError(
                f"run_lengths has {too_long[0]}, and the model {len(stack.layers)} layers: leave one at least"
            )
        kinds += [removal_of_runs(length) for length in config.run_lengths]
    if performance is None and any(kind.needs_performance for kind in kinds):
        kinds = [kind for kind in kinds if not kind.needs_performance]
        notes.append("No performance was given, so what removing a layer costs was not measured.")
    if any(kind.needs_sublayers for kind in kinds):
        finder = SublayerFinder()
        with evaluation_mode(stack.model), torch.no_grad(), finder.watch(stack):
            stack.model(**first.rows(0, 1).arguments_on(model_device(stack.model)))
        if not finder.is_complete():
            kinds = [kind for kind in kinds if not kind.needs_sublayers]
            notes.append(
                "Attention and feed-forward of the blocks could not be told apart by the names of their modules, so "
                "measures of sublayers and norms were left out."
            )
    return kinds


def first_tokens(batches: Sequence[ModelBatch], tokens: int) -> list[ModelBatch]:
    """The first rows, until they have so many counted tokens; at least one row. No row is cut.

    Which rows these are does not depend on how they are put into batches.
    """
    chosen: list[ModelBatch] = []
    for batch in batches:
        for row in range(len(batch.documents)):
            if tokens <= 0:
                chosen.append(batch.rows(0, row))
                return [part for part in chosen if len(part.documents)]
            tokens -= batch.tokens_in_row(row)
        chosen.append(batch)
    return chosen


def count_tokens(batches: Iterable[ModelBatch]) -> int:
    """Counted tokens; of batches that count every position, rows."""
    return sum(batch.tokens_in_row(row) for batch in batches for row in range(len(batch.documents)))


def to_series(kind: SeriesKind, measure: Measure, unit_of_performance: str) -> Series:
    """Read a series from a measure that has seen everything."""
    unit = unit_of_performance if kind.unit == _UNIT_OF_PERFORMANCE else kind.unit
    return _as_series(kind.name, kind.axis, unit, kind.read(measure))


def _as_series(name: str, axis: Axis, unit: str, found: Estimates) -> Series:
    return Series(name, axis, unit, found.value.tolist(), _or_none(found.low.tolist()), _or_none(found.high.tolist()))


def _or_none(values: Sequence[float]) -> list[float | None]:
    return [None if math.isnan(value) else value for value in values]


def _norm_scale(scale: NormScale) -> NormScaleResult:
    low, high = _or_none([scale.sigma.low.item(), scale.sigma.high.item()])
    return NormScaleResult(scale.block, scale.name, scale.is_on_stream, scale.sigma.value.item(), low, high)


def _gradient_models(model: nn.Module, config: DiagnosisConfig) -> Iterator[tuple[str, nn.Module]]:
    measured = GRADIENT_SERIES if config.measures is None else config.measures
    if "gradient_norm" in measured:
        yield "gradient_norm", model
    if config.fresh_gradients and "gradient_norm_at_init" in measured:
        yield "gradient_norm_at_init", fresh_model(model)


def fresh_model(model: nn.Module, seed: int = 0) -> nn.Module:
    """A model of the same config with new weights, on the same device and in the same precision.

    Raises:
        InputError: it is not a Hugging Face model.
    """
    if not isinstance(model, PreTrainedModel):
        raise InputError(f"a {type(model).__name__} has no config to initialise a fresh one from")
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        fresh = type(model)._from_config(copy.deepcopy(model.config))
    return nn.Module.to(fresh, device=model_device(model), dtype=model.dtype)


def _score_series(
    stack: BlockStack, name: str, score: Callable[[nn.Module], float], report_step: ReportStep | None
) -> Series:
    count = len(stack.layers)
    drops: list[float] = []
    with evaluation_mode(stack.model), torch.no_grad():
        whole = score(stack.model)
        for index in range(count):
            if report_step is not None:
                report_step(name, index, count)
            with without_blocks(stack, [index]):
                drops.append(whole - score(stack.model))
    return Series(f"removal_{name}", "layer", name, drops, [None] * count, [None] * count)


def _reporting(batches: Sequence[ModelBatch], what: str, report_step: ReportStep | None) -> Iterator[ModelBatch]:
    for number, batch in enumerate(batches):
        if report_step is not None:
            report_step(what, number, len(batches))
        yield batch


def _count(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())
