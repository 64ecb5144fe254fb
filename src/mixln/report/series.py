"""Measured numbers with their intervals, and how they are shown. Plain data, the same for diagnoses and comparisons."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from itertools import accumulate, pairwise
from typing import Literal

from mixln.confidence import with_interval

Interval = tuple[float, float]
"""The lower and the upper end of a 95 % confidence interval."""


@dataclass(frozen=True)
class Estimate:
    """A number and its interval; None where there is none (one document alone)."""

    value: float
    interval: Interval | None = None

    @property
    def high(self) -> float:
        """The upper end of the interval; without one, the number itself."""
        return self.value if self.interval is None else self.interval[1]

    @property
    def low(self) -> float:
        """The lower end of the interval; without one, the number itself."""
        return self.value if self.interval is None else self.interval[0]

    @property
    def holds_zero(self) -> bool:
        """Whether the interval holds 0, or there is none: then the sign of the number cannot be told."""
        return self.interval is None or self.interval[0] <= 0 <= self.interval[1]

    def format(self, form: str) -> str:
        """The number and, if there is one, its interval in this format: `+0.3 [+0.1, +0.5]`."""
        return with_interval(self.value, self.interval, form)


def interval_columns(name: str, estimate: Estimate | None) -> dict[str, float | None]:
    """Return the columns of a data frame that a number has: `name`, `name_low` and `name_high`."""
    low, high = (None, None) if estimate is None or estimate.interval is None else estimate.interval
    return {name: None if estimate is None else estimate.value, f"{name}_low": low, f"{name}_high": high}


LEAST_BELOW_FREQUENCIES = 0.01
"""Nats per token that a loss must be below that of token frequencies, at the upper end of the interval."""


def is_below_frequencies(over: Estimate | None) -> bool:
    """Whether a language model has learned word order, as far as is known.

    Args:
        over: its loss minus that of token frequencies on the same tokens, with the interval over documents; None: it is
            not known, and then not denied.
    """
    return over is None or over.high < -LEAST_BELOW_FREQUENCIES


def is_better_than_constants(over_losses: Iterable[Estimate | None], over_accuracy: Estimate | None = None) -> bool:
    """Whether a model has learned anything beyond constants, by its loss or else by its accuracy, as far as is known.

    Args:
        over_losses: its loss minus that of a constant, for each kind of constant (token frequencies, class
            frequencies); `is_below_frequencies` says what is clearly better.
        over_accuracy: its accuracy minus that of naming the most frequent class, to be above 0 at the lower end of the
            interval. What is None is not known; where nothing is, it is not denied.
    """
    better = [is_below_frequencies(over) for over in over_losses if over is not None]
    if over_accuracy is not None:
        better.append(over_accuracy.low > 0)
    return any(better) or not better


Axis = Literal[
    "layer", "state", "first_of_pair", "first_of_run", "run", "model", "norm", "prompt", "component", "neuron"
]
"""What a series has an entry for: each layer 1 .. L; each state x_1 .. x_(L+1); each pair of neighbours by its first
layer; each run of n layers by its first layer; each run of any length (all of length 1, then all of length 2 ...); the
whole model (one entry); each norm; each pair of prompts; each prompt, sublayer and position; each chosen neuron."""


@dataclass(frozen=True)
class Series:
    """One measure: a number for each layer or the like.

    Attributes:
        name: of the measure, as in the list of measures in the documentation.
        axis: what each entry stands for; entries begin at 1.
        unit: of the numbers.
        estimates: the numbers.
        labels: what each entry is of, where its place does not say so.
    """

    name: str
    axis: Axis
    unit: str
    estimates: list[Estimate]
    labels: list[str] | None = None

    @property
    def values(self) -> list[float]:
        """The numbers without their intervals."""
        return [estimate.value for estimate in self.estimates]

    @property
    def places(self) -> range:
        """What each entry is drawn at: layers and the like count from 1, states from 0."""
        first = 0 if self.axis == "state" else 1
        return range(first, first + len(self.estimates))

    def triangle(self) -> list[list[float]]:
        """The values of a series over runs: row n-1, entry l-1 is that of the n layers from l on."""
        values = self.values
        ends = accumulate(range(run_layers(len(values)), 0, -1), initial=0)
        return [values[start:end] for start, end in pairwise(ends)]

    def extreme(self, choose: Callable[..., int]) -> int | None:
        """The index of the least (`min`) or largest (`max`) number; None if none is finite."""
        values = self.values
        finite = [index for index, value in enumerate(values) if math.isfinite(value)]
        return choose(finite, key=values.__getitem__) if finite else None


def run_layers(runs: int) -> int:
    """The number L of layers that have L (L + 1) / 2 runs."""
    return math.isqrt(2 * runs)


@dataclass(frozen=True)
class FigureSpec:
    """A figure: what it is drawn of, in which form, and what is said beside it.

    Attributes:
        name: its file name without suffix.
        title: heading on the page.
        shows: what it shows, with the formula.
        reading: how to read it.
        form: bars or lines over layers, a triangle of runs, or points of the second series over the first.
        series: the series that it is drawn of, and what each is called beside the others.
        x: name of the horizontal axis.
        y: name of the vertical axis; empty: the unit of the series.
        log: whether the vertical axis is always logarithmic.
    """

    name: str
    title: str
    shows: str
    reading: str
    form: Literal["bars", "lines", "triangles", "points"]
    series: dict[str, str]
    x: str = "layer"
    y: str = ""
    log: bool = False


@dataclass(frozen=True)
class ColumnSpec:
    """A column of the table of layers.

    Attributes:
        head: of the column.
        series: what it shows.
        form: how its numbers read: a format, or as perplexities.
        table: where a terminal shows it, which is narrower than a page: with the layers, in a table of scores, nowhere.
    """

    head: str
    series: str
    form: str = ".3f"
    table: Literal["layers", "scores", "page alone"] = "page alone"


@dataclass(frozen=True)
class TableSpec:
    """A table with a row for each labelled entry of some series.

    Attributes:
        title: heading on the page.
        reading: how to read it.
        head: of its three columns: label, kind, number.
        series: the series, and the kind that is written beside their entries.
    """

    title: str
    reading: str
    head: list[str]
    series: dict[str, str]


@dataclass(frozen=True)
class Presentation:
    """How the series of a model are shown.

    Attributes:
        figures: in their order.
        columns: of the table of layers.
        tables: of what is not a layer.
        sentences: what the numbers come to, the most important first.
    """

    figures: list[FigureSpec] = field(default_factory=list)
    columns: list[ColumnSpec] = field(default_factory=list)
    tables: list[TableSpec] = field(default_factory=list)
    sentences: list[str] = field(default_factory=list)


def merged_figures(several: Iterable[Sequence[FigureSpec]]) -> list[FigureSpec]:
    """The figures of several models as one list: those of one name are one figure, of the series of all."""
    merged: dict[str, FigureSpec] = {}
    for figures in several:
        for figure in figures:
            known = merged.get(figure.name)
            merged[figure.name] = replace(figure, series=(known.series if known else {}) | figure.series)
    return list(merged.values())
