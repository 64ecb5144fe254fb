"""Measures as entries: how one is made, what series it gives, and how these are shown."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch

from mixln.measure.batches import ModelBatch
from mixln.measure.estimates import Estimates
from mixln.measure.interventions import Family
from mixln.measure.observation import Measure, observe
from mixln.measure.performance import Performance
from mixln.measure.performance_drop import PerformanceDrop
from mixln.measure.proof import ProvenExecution
from mixln.models.anatomy import BlockStack
from mixln.report.diagnosis import ModelDiagnosis
from mixln.report.series import Axis, ColumnSpec, Estimate, FigureSpec, Presentation, Series, TableSpec, merged_figures
from mixln.studies.diagnosis_config import DiagnosisConfig
from mixln.studies.stages import ReportStage, Steps


@dataclass(frozen=True)
class Given:
    """What is measured, and how.

    Attributes:
        stack: the blocks of the measured model.
        performance: what a change costs; None: that is not measured.
        execution: of changed models: one proof for all measures, and the sublayers of the model's blocks, found once.
        config: how to measure.
        autocast_dtype: autocast to this; None: the model's own precision.
        report: progress.
    """

    stack: BlockStack
    performance: Performance | None
    execution: ProvenExecution = field(default_factory=ProvenExecution)
    config: DiagnosisConfig = field(default_factory=DiagnosisConfig)
    autocast_dtype: torch.dtype | None = None
    report: ReportStage | None = None


@dataclass(frozen=True)
class Found:
    """What a measure has found: series, and notes on what could not be measured."""

    series: list[Series]
    notes: list[str] = field(default_factory=list)

    def added_to(self, diagnosis: ModelDiagnosis) -> ModelDiagnosis:
        """The diagnosis with these series and notes; equal notes become one."""
        series = diagnosis.series | {one.name: one for one in self.series}
        return replace(diagnosis, series=series, notes=list(dict.fromkeys([*diagnosis.notes, *self.notes])))


class Entry:
    """A measure, and how it is shown.

    Attributes:
        name: to choose it by.
        rank: its place among the others, in figures, columns and sentences.
        figures: that its series are drawn in; entries may share one.
        columns: of the table of layers.
        tables: of what is not a layer.
        judges_layers: whether its sentences say which layers are needed: they are left out of a model that has not
            learned to be better than a constant.
    """

    name: str
    rank: int
    figures: tuple[FigureSpec, ...] = ()
    columns: tuple[ColumnSpec, ...] = ()
    tables: tuple[TableSpec, ...] = ()
    judges_layers: bool = False

    def shown(self, model: ModelDiagnosis) -> Presentation:
        """Figures, columns and tables; overridden where they depend on what series a model has."""
        del model
        return Presentation(list(self.figures), list(self.columns), list(self.tables))

    def sentences(self, model: ModelDiagnosis) -> Iterable[str]:
        """What its numbers say, if the model has them."""
        del model
        return ()


class Observed(Entry):
    """A measure that sees every batch of a pass, which it shares with others.

    Attributes:
        measure: what is built.
        needs_performance: whether it measures what something costs.
        takes_many_passes: whether it runs over `performance_tokens`, or over all.
        needs_sublayers: whether it needs every block's attention and feed-forward to be told apart.
        decides_verdicts: whether what measures say that judge layers depends on it: it is taken with any of them.
    """

    measure: type[Measure]
    decides_verdicts: bool = False
    needs_performance: bool = False
    takes_many_passes: bool = False
    needs_sublayers: bool = False

    def is_about(self, performance: Performance | None) -> bool:
        """Whether it is a measure of models whose performance is measured so."""
        del performance
        return True

    def build(self, given: Given) -> Measure:
        """A measure that has seen nothing."""
        del given
        return self.measure()

    def read(self, measure: Any) -> Found:
        """Its result at the end of the pass."""
        raise NotImplementedError


@dataclass(eq=False)
class Drops(Observed):
    """The performance drops of a family of interventions, as one series; and the performance of the whole model.

    Attributes:
        name: of the entry and of its series.
        rank: of the entry.
        family: the interventions.
        axis: of the series.
        needs_sublayers: whether the interventions are about sublayers.
        figures: that the series is drawn in.
        columns: of the series.
    """

    measure = PerformanceDrop
    needs_performance = True
    takes_many_passes = True

    name: str
    rank: int
    family: Family
    axis: Axis = "layer"
    needs_sublayers: bool = False
    figures: tuple[FigureSpec, ...] = ()
    columns: tuple[ColumnSpec, ...] = ()

    def build(self, given: Given) -> PerformanceDrop:
        """A measure that has seen nothing."""
        assert given.performance is not None
        return PerformanceDrop(self.family, given.performance, given.execution)

    def read(self, measure: PerformanceDrop) -> Found:
        """The drops, if the model runs with any of the changes; a note for each reason why it fails with others."""
        unit = measure.performance.name
        series = [series_of("performance", "model", unit, measure.whole())]
        if measure.has_values:
            series.append(series_of(self.name, self.axis, unit, measure.drop()))
        places: dict[str, list[str]] = {}
        for place, reason in measure.failures.items():
            places.setdefault(reason, []).append(str(place))
        notes = [
            f"{self.name} has no value at {', '.join(own)}: the model cannot run that way ({reason})."
            for reason, own in places.items()
        ]
        return Found(series, notes)


class Computed(Entry):
    """A measure that goes through the batches by itself."""

    def is_wanted(self, given: Given) -> bool:
        """Whether it is asked for, and is about this kind of model."""
        raise NotImplementedError

    def compute(self, given: Given, batches: Sequence[ModelBatch]) -> Found:
        """Measure, on as many of the batches as the config says."""
        raise NotImplementedError


Built = Sequence[tuple[Observed, Measure]]
"""Entries, each with its measure, which has seen nothing."""


def observe_all(entries: Sequence[Observed], given: Given, batches: Sequence[ModelBatch], stage: str = "") -> Found:
    """Run the batches through the model once, and read what all entries have found.

    Raises:
        InputError: as `mixln.measure.observation.observe`, or there is no token to measure on.
    """
    built = [(entry, entry.build(given)) for entry in entries]
    return observe_built(built, given, batches, Steps(stage, num_steps(built, given, batches), given.report))


def num_steps(built: Built, given: Given, batches: Sequence[ModelBatch]) -> int:
    """How many steps `observe_built` takes."""
    return len(batches) * (1 + sum(measure.num_ticks(len(given.stack.layers)) for _, measure in built))


def observe_built(built: Built, given: Given, batches: Sequence[ModelBatch], steps: Steps) -> Found:
    """Run the batches through the model once, and read what all entries have found; see `observe_all`."""
    measures = [measure for _, measure in built]
    observe(given.stack, batches, measures, autocast_dtype=given.autocast_dtype, tick=steps)
    found = [entry.read(measure) for entry, measure in built]
    notes = [note for part in found for note in part.notes]
    if given.execution.reason_against_replays:
        notes.append(given.execution.reason_against_replays)
    return Found([one for part in found for one in part.series], notes)


def presented(diagnosis: ModelDiagnosis, entries: Iterable[Entry]) -> ModelDiagnosis:
    """The diagnosis with figures, columns, tables and sentences of entries, in the order of their ranks."""
    entries = sorted(entries, key=lambda entry: entry.rank)
    parts = [entry.shown(diagnosis) for entry in entries]
    speaking = [entry for entry in entries if diagnosis.has_learned or not entry.judges_layers]
    shown = Presentation(
        merged_figures(part.figures for part in parts),
        # scores last: there can be any number of them
        sorted((column for part in parts for column in part.columns), key=lambda column: column.table == "scores"),
        [table for part in parts for table in part.tables],
        [sentence for entry in speaking for sentence in entry.sentences(diagnosis)],
    )
    return replace(diagnosis, shown=shown)


def estimates_of(found: Estimates) -> list[Estimate]:
    """Tensors of estimates, of any shape, as a list."""
    parts = zip(*(part.flatten().tolist() for part in (found.value, found.low, found.high)), strict=True)
    return [Estimate(value, None if math.isnan(low) or math.isnan(high) else (low, high)) for value, low, high in parts]


def series_of(name: str, axis: Axis, unit: str, found: Estimates, labels: list[str] | None = None) -> Series:
    """A series of tensors of estimates, of any shape."""
    return Series(name, axis, unit, estimates_of(found), labels)
