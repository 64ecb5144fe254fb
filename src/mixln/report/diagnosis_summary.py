"""What a diagnosis comes to: which layers are dead weight, by which measure, and at what cost."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

from rich.box import SIMPLE_HEAD
from rich.table import Table
from rich.text import Text

from mixln.report import cells
from mixln.report.diagnosis import DepthReport, ModelDiagnosis, Series
from mixln.report.interpretability_text import interpretability_sentences

DEAD_SHARE = 0.01
"""A layer is called dead weight if its removal costs less than this share of the loss (of a pooled embedding: turns it
by less than this), at the upper end of the interval if there is one."""

RUN_SERIES = "removal_of_"
"""How the names of the series begin that are about runs of layers; the length of the runs follows."""

SCORE_SERIES = "score_"
"""How the names of the series begin that are a score of the whole model: see `removal_of_score`."""

_RUN_SHARE = 6
"""The run of layers whose angular distance is named is L / this long."""


@dataclass(frozen=True)
class LayerColumn:
    """A column of the table of layers.

    Attributes:
        head: of the column.
        series: what it shows.
        form: how its numbers read.
        in_terminal: whether it is shown in a terminal too, which is narrower than a page.
    """

    head: str
    series: str
    form: Callable[[float], str] = "{:.3f}".format
    in_terminal: bool = False


_SIGNED = "{:+.3f}".format

COLUMNS = (
    LayerColumn("removal", "removal", _SIGNED, in_terminal=True),
    LayerColumn("perplexity without", "perplexity_without", cells.perplexity, in_terminal=True),
    LayerColumn("attention removed", "attention_removal", _SIGNED, in_terminal=True),
    LayerColumn("feed-forward removed", "feed_forward_removal", _SIGNED, in_terminal=True),
    LayerColumn("swap with next", "swap", _SIGNED),
    LayerColumn("repeat", "repeat", _SIGNED),
    LayerColumn("block influence", "block_influence", in_terminal=True),
    LayerColumn("|J - I| / |I|", "jacobian_distance"),
    LayerColumn("attention share", "attention_share"),
    LayerColumn("feed-forward share", "feed_forward_share"),
    LayerColumn("gradient norm", "gradient_norm", "{:.3g}".format),
)


def dead_layers(model: ModelDiagnosis) -> list[int]:
    """The layers (from 1) whose removal costs next to nothing; empty if removals were not measured."""
    removal = model.series.get("removal")
    if removal is None:
        return []
    limit = dead_limit(model)
    highest = [value if high is None else high for value, high in zip(removal.values, removal.high, strict=True)]
    return [layer for layer, high in enumerate(highest, start=1) if high < limit]


def dead_limit(model: ModelDiagnosis) -> float:
    """What the removal of a layer may cost for it to be called dead weight."""
    # the whole model is at 0 by a pooled embedding's turn
    return DEAD_SHARE * (model.performance_of_whole or 1.0)


def findings(model: ModelDiagnosis) -> list[str]:
    """Sentences about one model, the most important first."""
    sentences: list[str] = []
    removal = model.series.get("removal")
    if removal is not None:
        sentences += [_dead_sentence(model, removal), _costliest_sentence(model, removal)]
    sentences += [_run_sentence(series) for name, series in model.series.items() if name.startswith(RUN_SERIES)]
    sentences += [_score_sentence(model, name) for name in score_names(model)]
    length = max(1, model.num_layers // _RUN_SHARE)
    if len(model.angular_distance) >= length:
        distances = model.angular_distance[length - 1]
        first = min(range(len(distances)), key=distances.__getitem__)
        sentences.append(
            f"{_least_turning(first + 1, length)}: angular distance {distances[first]:.3f}; of all "
            f"{'layers' if length == 1 else 'runs of that length'}, {min(distances):.3f} to {max(distances):.3f}."
        )
    variance = model.series.get("variance")
    if variance is not None and variance.values[0] > 0:
        growth = variance.values[-1] / variance.values[0]
        sentences.append(
            f"The variance of the stream grows {growth:,.3g}-fold from the input of layer 1 to the output of layer "
            f"{model.num_layers}."
        )
    if model.log10_gradient_factor is not None:
        if any(norm.is_on_stream for norm in model.norm_scales):
            sentences.append(
                "Norms stand on the stream (Post-LN): on its way through them a gradient is multiplied by about "
                f"10^{model.log10_gradient_factor:+.1f} (product of 1 / sigma)."
            )
        else:
            sentences.append("No norm stands on the stream (Pre-LN): no gradient is divided on its way back.")
    if model.interpretability is not None:
        sentences += interpretability_sentences(model.interpretability)
    return sentences + model.notes


def _dead_sentence(model: ModelDiagnosis, removal: Series) -> str:
    dead, limit = dead_layers(model), dead_limit(model)
    cheapest = min(range(len(removal.values)), key=removal.values.__getitem__)
    has_intervals = any(high is not None for high in removal.high)
    rule = f"less than {limit:.3g} ({model.performance})" + (
        " at the upper end of the interval" if has_intervals else ""
    )
    cheap = f"The cheapest to remove is layer {cheapest + 1}: {_with_interval(removal, cheapest)}."
    if not dead:
        return f"No layer is dead weight: none costs {rule}. {cheap}"
    parameters = sum(model.layer_parameters[layer - 1] for layer in dead)
    share = parameters / model.num_parameters
    are = "is" if len(dead) == 1 else "are"
    return (
        f"{len(dead)} of {model.num_layers} layers {are} dead weight, each for itself ({_numbers(dead)}; {share:.0%} "
        f"of the parameters): removing one of them costs {rule}. {cheap}"
    )


def _run_sentence(series: Series) -> str:
    length = int(series.name.removeprefix(RUN_SERIES))
    first = min(range(len(series.values)), key=series.values.__getitem__)
    return (
        f"The {length} consecutive layers that are cheapest to remove together are {first + 1} to {first + length}: "
        f"{_with_interval(series, first)}."
    )


def _score_sentence(model: ModelDiagnosis, name: str) -> str:
    whole, removal = model.series[f"{SCORE_SERIES}{name}"], model.series[removal_of_score(name)]
    cheapest, costliest = (choose(range(len(removal.values)), key=removal.values.__getitem__) for choose in (min, max))
    return (
        f"{name} ({whole.unit}): the whole model has {_with_interval(whole, 0, '.4f')}. Removing layer {costliest + 1} "
        f"costs most, {_with_interval(removal, costliest)}; layer {cheapest + 1} least, "
        f"{_with_interval(removal, cheapest)}."
    )


def _costliest_sentence(model: ModelDiagnosis, removal: Series) -> str:
    costliest = max(range(len(removal.values)), key=removal.values.__getitem__)
    whole = f"; the whole model has {model.performance_of_whole:.3f}" if model.performance_of_whole else ""
    if "perplexity" in model.series:
        whole += f" (perplexity {cells.perplexity(model.series['perplexity'].values[0])})"
    return f"The costliest is layer {costliest + 1}: {_with_interval(removal, costliest)} {model.performance}{whole}."


def _with_interval(series: Series, index: int, form: str = "+.4f") -> str:
    low, high = series.low[index], series.high[index]
    value = f"{series.values[index]:{form}}"
    return value if low is None or high is None else f"{value} [{low:{form}}, {high:{form}}]"


def _least_turning(first: int, length: int) -> str:
    if length == 1:
        return f"The layer that turns the residual stream least is {first}"
    return f"The {length} consecutive layers that turn the residual stream least are {first} to {first + length - 1}"


def _numbers(layers: list[int]) -> str:
    """3, 5-7, 9."""
    runs: list[list[int]] = []
    for layer in layers:
        if runs and layer == runs[-1][-1] + 1:
            runs[-1].append(layer)
        else:
            runs.append([layer])
    return ", ".join(str(run[0]) if len(run) == 1 else f"{run[0]}-{run[-1]}" for run in runs)


def headline(report: DepthReport) -> str:
    """One sentence about all models."""
    parts = []
    for model in report.models:
        if "removal" in model.series:
            dead = len(dead_layers(model))
            are = "is" if dead == 1 else "are"
            parts.append(f"{model.model}: {dead} of {model.num_layers} layers {are} dead weight")
        else:
            parts.append(f"{model.model}: {model.num_layers} layers, removals not measured")
    return "; ".join(parts)


def layer_columns(model: ModelDiagnosis) -> list[LayerColumn]:
    """The columns that there is something for."""
    return [*(column for column in COLUMNS if column.series in model.series), *score_columns(model)]


def score_columns(model: ModelDiagnosis) -> list[LayerColumn]:
    """What removing each layer costs of each score."""
    return [LayerColumn(name, removal_of_score(name), _SIGNED) for name in score_names(model)]


def score_names(model: ModelDiagnosis) -> list[str]:
    """The scores that the model was given, beside the loss."""
    return [name.removeprefix(SCORE_SERIES) for name in model.series if name.startswith(SCORE_SERIES)]


def removal_of_score(name: str) -> str:
    """The series of what removing each layer costs of a score."""
    return f"removal_{name}"


def layer_rows(model: ModelDiagnosis, columns: list[LayerColumn]) -> list[list[str]]:
    """A row for each layer: its number, then a cell for each column."""
    rows: list[list[str]] = []
    for index in range(model.num_layers):
        row = [str(index + 1)]
        for column in columns:
            values = model.series[column.series].values
            there = index < len(values) and math.isfinite(values[index])
            row.append(column.form(values[index]) if there else cells.MISSING)
        rows.append(row)
    return rows


def layer_tables(model: ModelDiagnosis) -> list[Table]:
    """The layers of a model for the terminal, scores in a table of their own; dead weight is dim and marked."""
    columns = layer_columns(model)
    layers = _table(model, [column for column in columns if column.in_terminal])
    layers.title = f"{model.model}: {model.kind}, {model.num_layers} layers"
    scores = score_columns(model)
    if not scores:
        return [layers]
    table = _table(model, scores)
    table.title = "harm to scores"
    return [layers, table]


def _table(model: ModelDiagnosis, columns: list[LayerColumn]) -> Table:
    table = Table(box=SIMPLE_HEAD, title_justify="left")
    table.add_column("layer")
    for column in columns:
        table.add_column(column.head, justify="right", overflow="fold")
    dead = set(dead_layers(model))
    for layer, row in enumerate(layer_rows(model, columns), start=1):
        first = f"{row[0]} *" if layer in dead else row[0]
        table.add_row(*map(Text, [first, *row[1:]]), style="dim" if layer in dead else "")
    if dead:
        table.caption = "* dead weight"
        table.caption_justify = "left"
    return table
