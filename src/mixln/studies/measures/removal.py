"""What removing each layer costs, and each run of layers: which of them are dead weight."""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch

from mixln.measure.interventions import removals
from mixln.measure.performance import LanguageModelLoss
from mixln.measure.performance_drop import PerformanceDrop
from mixln.placement.words import number_ranges
from mixln.report import cells
from mixln.report.diagnosis import ModelDiagnosis
from mixln.report.series import ColumnSpec, FigureSpec, Presentation, Series
from mixln.studies.measuring import Drops, Found, series_of

_FIGURE = FigureSpec(
    "removal",
    "Harm done by removing a layer",
    "dP(l) = P without layer l - P with all layers, without healing (Mix-LN, section 2). P is the loss in nats per "
    "token; of a model without a language-model head, how far its pooled embedding turns.",
    "Bars near zero are dead weight. An arrow at the end of a bar or whisker says that it is cut off; its number "
    "stands above the panel.",
    "bars",
    {"removal": ""},
    x="removed layer",
)


class _Removal(Drops):
    judges_layers = True

    def read(self, measure: PerformanceDrop) -> Found:
        """Perplexities, too, of the whole model and without each layer, if what is measured is a loss."""
        found = super().read(measure)
        if not isinstance(measure.performance, LanguageModelLoss) or not measure.has_values:
            return found
        perplexities = [
            series_of("perplexity", "model", "perplexity", measure.whole().through(torch.exp)),
            series_of("perplexity_without", "layer", "perplexity", measure.changed().through(torch.exp)),
        ]
        return Found([*found.series, *perplexities], found.notes)

    def shown(self, model: ModelDiagnosis) -> Presentation:
        """Beside its own figure one of all runs of layers that were removed."""
        runs = FigureSpec(
            "run_removal",
            "Harm done by removing consecutive layers together",
            "dP of removing the n layers from l on; each bar stands at the first of them.",
            "A run can cost more than its layers one by one, or less.",
            "bars",
            {name: f"{length} layers" for length, name in sorted(_runs(model).items())},
            x="first removed layer",
        )
        return Presentation([*self.figures, runs], list(self.columns))

    def sentences(self, model: ModelDiagnosis) -> Iterator[str]:
        """Which layers are dead weight, which costs most, and the cheapest run of each length."""
        if removal := model.series.get("removal"):
            yield _dead_sentence(model, removal)
            yield _costliest_sentence(model, removal)
        for length, name in _runs(model).items():
            yield _run_sentence(model.series[name], length)


def _runs(model: ModelDiagnosis) -> dict[int, str]:
    """The lengths of the runs that were removed, and their series."""
    runs = (series for series in model.series.values() if series.axis == "first_of_run")
    return {model.num_layers + 1 - len(series.estimates): series.name for series in runs}


def removal_of_runs(length: int) -> Drops:
    """The performance drops of removing each run of `length` layers."""
    return Drops(f"removal_of_{length}", ENTRY.rank, removals(length), axis="first_of_run")


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
        ColumnSpec("perplexity without", "perplexity_without", "perplexity", "layers"),
    ),
)
