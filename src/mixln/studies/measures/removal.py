"""What removing each layer costs, and each run of layers: which of them are dead weight."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import torch

from mixln.measure.interventions import removals
from mixln.measure.performance import LanguageModelLoss, Loss, Performance
from mixln.measure.performance_drop import PerformanceDrop
from mixln.placement.words import number_ranges
from mixln.report import cells
from mixln.report.diagnosis import ModelDiagnosis
from mixln.report.series import ColumnSpec, FigureSpec, Presentation, Series
from mixln.studies.measuring import Drops, Found, Given, series_of

_SHARE = "share of images"

_RUNS = "removal_of_"
"""How the names of series begin that are of runs of layers."""

_FIGURE = FigureSpec(
    "removal",
    "Harm done by removing a layer",
    "dP(l) = P without layer l - P with all layers, without healing (Mix-LN, section 2). P is the loss in "
    "nats; of a model without a head that has one, how far its pooled embedding turns.",
    "Bars near zero are dead weight. An arrow at the end of a bar or whisker says that it is cut off; its number "
    "stands above the panel.",
    "bars",
    {"removal": ""},
    x="removed layer",
)

ACCURACY_FIGURE = FigureSpec(
    "accuracy_lost",
    "Accuracy lost by removing a layer",
    "Accuracy with all layers - accuracy without layer l: the share of images that are no longer right, less that of "
    "those that become right.",
    "A loss can rise where hardly an answer changes, and the other way round. One image alone makes a step of one "
    "over their number.",
    "bars",
    {"accuracy_lost": ""},
    x="removed layer",
    y="accuracy lost, share of images",
)
"""Of classifiers alone."""


def _accuracy_of(performance: Performance) -> Mapping[str, Performance]:
    """What tells a classifier's accuracy; empty: it is no classifier."""
    beside = performance.beside if isinstance(performance, Loss) else {}
    return {name: own for name, own in beside.items() if name == "accuracy"}


@dataclass(eq=False)
class _OfLayers(Drops):
    """Of a classifier accuracy, too: measured of the same outputs.

    Attributes:
        accuracy_lost: name of the series of what accuracy falls by.
    """

    accuracy_lost: str = "accuracy_lost"

    def build(self, given: Given) -> PerformanceDrop:
        """A measure that has seen nothing."""
        assert given.performance is not None
        beside = _accuracy_of(given.performance)
        return PerformanceDrop(self.family, given.performance, given.execution, beside)

    def read(self, measure: PerformanceDrop) -> Found:
        """The drops; and accuracy, of the whole model and what it falls by."""
        found = super().read(measure)
        if not _accuracy_of(measure.performance) or not measure.has_values:
            return found
        whole, drops = measure.whole("accuracy").complement(), measure.drop("accuracy")
        accuracy = [
            series_of("accuracy", "model", _SHARE, whole),
            series_of(self.accuracy_lost, self.axis, _SHARE, drops),
        ]
        return Found([*found.series, *accuracy], found.notes)


class _Removal(_OfLayers):
    judges_layers = True

    def read(self, measure: PerformanceDrop) -> Found:
        """Perplexities, too, of the whole model and without each layer, if what is measured is their logarithm."""
        found = super().read(measure)
        if not isinstance(measure.performance, LanguageModelLoss) or not measure.has_values:
            return found
        perplexities = [
            series_of("perplexity", "model", "perplexity", measure.whole().through(torch.exp)),
            series_of("perplexity_without", "layer", "perplexity", measure.changed().through(torch.exp)),
        ]
        return Found([*found.series, *perplexities], found.notes)

    def shown(self, model: ModelDiagnosis) -> Presentation:
        """Beside the figures of what was measured one of all runs of layers that were removed."""
        runs = FigureSpec(
            "run_removal",
            "Harm done by removing consecutive layers together",
            "dP of removing the n layers from l on; each bar stands at the first of them.",
            "A run can cost more than its layers one by one, or less.",
            "bars",
            {name: f"{length} layers" for length, name in sorted(_runs(model).items())},
            x="first removed layer",
        )
        figures = [*self.figures, *([ACCURACY_FIGURE] if "accuracy_lost" in model.series else []), runs]
        return Presentation(figures, [column for column in self.columns if column.series in model.series])

    def sentences(self, model: ModelDiagnosis) -> Iterator[str]:
        """Which layers are dead weight, which costs most, and the cheapest run of each length."""
        if removal := model.series.get("removal"):
            yield _dead_sentence(model, removal)
            yield _costliest_sentence(model, removal)
        if "accuracy_lost" in model.series:
            yield _accuracy_sentence(model)
        for length, name in _runs(model).items():
            yield _run_sentence(model.series[name], length)


def _runs(model: ModelDiagnosis) -> dict[int, str]:
    """The lengths of the runs that were removed, and their series."""
    runs = (series for name, series in model.series.items() if name.startswith(_RUNS))
    return {model.num_layers + 1 - len(series.estimates): series.name for series in runs}


def removal_of_runs(length: int) -> Drops:
    """The performance drops of removing each run of `length` layers."""
    lost = f"accuracy_lost_of_{length}"
    return _OfLayers(f"{_RUNS}{length}", ENTRY.rank, removals(length), axis="first_of_run", accuracy_lost=lost)


def _dead_sentence(model: ModelDiagnosis, removal: Series) -> str:
    dead, cheapest = model.dead_layers, removal.extreme(min)
    if cheapest is None:
        return f"Without any one of its {model.num_layers} layers the model gives no finite {model.performance}."
    has_intervals = any(one.interval is not None for one in removal.estimates)
    rule = f"less than {model.dead_limit:.3g} ({model.performance})" + (
        " at the upper end of the interval" if has_intervals else ""
    )
    cheap = f"The cheapest to remove is layer {cheapest + 1}: {removal.estimates[cheapest].format('+.4f')}."
    cheap += _not_finite_sentence(removal)
    if not dead:
        return f"No layer is dead weight: none costs {rule}. {cheap}"
    share = sum(model.layer_parameters[layer - 1] for layer in dead) / model.num_parameters
    are = "is" if len(dead) == 1 else "are"
    return (
        f"{len(dead)} of {model.num_layers} layers {are} dead weight, each taken alone ({number_ranges(dead)}; "
        f"{share:.0%} of the parameters): removing one of them costs {rule}. {cheap}"
    )


def _not_finite_sentence(removal: Series) -> str:
    layers = [layer for layer, value in enumerate(removal.values, start=1) if not math.isfinite(value)]
    if not layers:
        return ""
    which = f"layer {layers[0]}" if len(layers) == 1 else f"any one of layers {number_ranges(layers)}"
    return f" Without {which} the model gives no finite number."


def _costliest_sentence(model: ModelDiagnosis, removal: Series) -> str:
    costliest, whole = removal.extreme(max), model.performance_of_whole
    if costliest is None:
        return f"The whole model has {whole}."
    has = f"; the whole model has {whole:.3f}" if whole else ""
    if "perplexity" in model.series:
        has += f" (perplexity {cells.perplexity(model.series['perplexity'].values[0])})"
    cost = removal.estimates[costliest].format("+.4f")
    return f"The costliest is layer {costliest + 1}: {cost} {model.performance}{has}."


def _accuracy_sentence(model: ModelDiagnosis) -> str:
    accuracy, lost = model.series["accuracy"].estimates[0], model.series["accuracy_lost"]
    most, least = lost.extreme(max), lost.extreme(min)
    whole = f"The whole model is right on {accuracy.format('.1%')} of the images"
    if most is None or least is None:
        return f"{whole}."
    return (
        f"{whole}. Without layer {most + 1} it loses the most of them, {lost.estimates[most].format('+.1%')}, and "
        f"without layer {least + 1} the fewest, {lost.estimates[least].format('+.1%')}."
    )


def _run_sentence(series: Series, length: int) -> str:
    first = series.extreme(min)
    if first is None:
        return f"Without any {length} consecutive layers the model gives no finite number."
    return (
        f"The {length} consecutive layers that are cheapest to remove together are {first + 1} to {first + length}: "
        f"{series.estimates[first].format('+.4f')}."
    )


ENTRY = _Removal(
    "removal",
    10,
    removals(),
    figures=(_FIGURE,),
    columns=(
        ColumnSpec("removal", "removal", "+.3f", "layers"),
        ColumnSpec("accuracy lost", "accuracy_lost", "+.4f", "layers"),
        ColumnSpec("perplexity without", "perplexity_without", "perplexity", "layers"),
    ),
)
