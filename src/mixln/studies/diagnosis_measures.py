"""The measures of a diagnosis: how each is made, and what it adds to the result."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

from mixln.depth.angular import triangle
from mixln.depth.estimates import Estimates
from mixln.depth.growth import StreamGrowth
from mixln.depth.interventions import Intervention, PerformanceDrop, removals, repeats, silences, swaps
from mixln.depth.jacobian import JacobianDistance
from mixln.depth.norm_scales import NormScale, NormScales
from mixln.depth.observation import Measure
from mixln.depth.performance import LanguageModelLoss, Performance
from mixln.depth.similarity import Similarity
from mixln.depth.sublayers import SublayerFinder, SublayerShares
from mixln.report.diagnosis import Axis, ModelDiagnosis, NormScaleResult, Series

Result = Callable[[Any, ModelDiagnosis], ModelDiagnosis]
"""From a measure that has seen everything, and what was found so far, to that and what this measure has found."""


@dataclass(frozen=True)
class Ingredients:
    """What measures are made of.

    Attributes:
        performance: what a change costs; only measures with `needs_performance` may ask for it if there is none.
        sublayers: of the model's blocks, found once for all measures.
    """

    performance: Performance | None
    sublayers: SublayerFinder

    def drop(self, family: Callable[[int], Iterable[Intervention]]) -> PerformanceDrop:
        """The performance drop of a family of interventions."""
        assert self.performance is not None
        return PerformanceDrop(family, self.performance, self.sublayers)


@dataclass(frozen=True)
class MeasureKind:
    """A measure and what it gives.

    Attributes:
        name: to choose it by.
        build: makes it.
        results: what is read from it at the end, each added to the diagnosis.
        needs_performance: whether it measures what something costs.
        takes_many_passes: whether it runs over `performance_tokens`, or over all.
        needs_sublayers: whether it needs every block's attention and feed-forward to be told apart.
    """

    name: str
    build: Callable[[Ingredients], Measure]
    results: tuple[Result, ...]
    needs_performance: bool = False
    takes_many_passes: bool = False
    needs_sublayers: bool = False


def with_series(diagnosis: ModelDiagnosis, name: str, axis: Axis, unit: str, found: Estimates) -> ModelDiagnosis:
    """The diagnosis with one more series, of (n,) estimates, or of one number."""
    value, low, high = (part.flatten().tolist() for part in (found.value, found.low, found.high))
    series = Series(name, axis, unit, value, _or_none(low), _or_none(high))
    return replace(diagnosis, series={**diagnosis.series, name: series})


def _or_none(values: Sequence[float]) -> list[float | None]:
    return [None if math.isnan(value) else value for value in values]


def _series(name: str, axis: Axis, unit: str, read: Callable[[Any], Estimates]) -> Result:
    return lambda measure, diagnosis: with_series(diagnosis, name, axis, unit, read(measure))


def _angular_distance(measure: Similarity, diagnosis: ModelDiagnosis) -> ModelDiagnosis:
    found = measure.angular_distance()
    return replace(
        diagnosis,
        angular_distance=triangle(found.value),
        angular_distance_low=[_or_none(row) for row in triangle(found.low)],
        angular_distance_high=[_or_none(row) for row in triangle(found.high)],
    )


def _norm_scales(measure: NormScales, diagnosis: ModelDiagnosis) -> ModelDiagnosis:
    return replace(
        diagnosis,
        norm_scales=[_norm_scale(scale) for scale in measure.scales()],
        log10_gradient_factor=measure.log_gradient_factor().value.item() / math.log(10),
    )


def _norm_scale(scale: NormScale) -> NormScaleResult:
    low, high = _or_none([scale.sigma.low.item(), scale.sigma.high.item()])
    return NormScaleResult(scale.block, scale.name, scale.is_on_stream, scale.sigma.value.item(), low, high)


def _whole(measure: PerformanceDrop, diagnosis: ModelDiagnosis) -> ModelDiagnosis:
    found = measure.whole()
    low, high = _or_none([found.low.item(), found.high.item()])
    return replace(
        diagnosis,
        performance_of_whole=found.value.item(),
        performance_of_whole_low=low,
        performance_of_whole_high=high,
    )


def _perplexities(measure: PerformanceDrop, diagnosis: ModelDiagnosis) -> ModelDiagnosis:
    """exp(P), if P is a loss: of the whole model, and without each layer."""
    if not isinstance(measure.performance, LanguageModelLoss):
        return diagnosis
    diagnosis = with_series(diagnosis, "perplexity", "model", "perplexity", measure.whole().through(torch.exp))
    without = measure.changed().through(torch.exp)
    return with_series(diagnosis, "perplexity_without", "layer", "perplexity", without)


def _drops(
    name: str,
    axis: Axis,
    family: Callable[[int], Iterable[Intervention]],
    *more: Result,
    of_sublayers: bool = False,
) -> MeasureKind:
    def drop(measure: PerformanceDrop, diagnosis: ModelDiagnosis) -> ModelDiagnosis:
        return with_series(diagnosis, name, axis, diagnosis.performance, measure.drop())

    return MeasureKind(
        name,
        lambda given: given.drop(family),
        (drop, _whole, *more),
        needs_performance=True,
        takes_many_passes=True,
        needs_sublayers=of_sublayers,
    )


MEASURES: list[MeasureKind] = [
    MeasureKind(
        "similarity",
        lambda _: Similarity(),
        (_series("block_influence", "layer", "1 - cosine", Similarity.block_influence), _angular_distance),
    ),
    MeasureKind(
        "growth",
        lambda _: StreamGrowth(),
        (
            _series("variance", "state", "squared units of the stream", StreamGrowth.variance),
            _series("rms", "state", "units of the stream", StreamGrowth.rms),
            _series("norm", "state", "units of the stream", StreamGrowth.norm),
        ),
    ),
    MeasureKind(
        "sublayer_shares",
        lambda given: SublayerShares(given.sublayers),
        (
            _series("attention_share", "layer", "|F| / |x|", lambda found: found.share("attention")),
            _series("feed_forward_share", "layer", "|F| / |x|", lambda found: found.share("feed_forward")),
        ),
        needs_sublayers=True,
    ),
    MeasureKind("norm_scales", lambda given: NormScales(given.sublayers), (_norm_scales,), needs_sublayers=True),
    _drops("removal", "layer", removals(), _perplexities),
    _drops("attention_removal", "layer", silences("attention"), of_sublayers=True),
    _drops("feed_forward_removal", "layer", silences("feed_forward"), of_sublayers=True),
    _drops("swap", "first_of_pair", swaps),
    _drops("repeat", "layer", repeats),
    MeasureKind(
        "jacobian",
        lambda _: JacobianDistance(),
        (_series("jacobian_distance", "layer", "|J - I| / |I|", JacobianDistance.distance),),
        takes_many_passes=True,
    ),
]
"""Every measure of a pass. One more is one more entry."""


def removal_of_runs(length: int) -> MeasureKind:
    """The performance drops of removing each run of `length` layers."""
    return _drops(f"removal_of_{length}", "first_of_run", removals(length))
