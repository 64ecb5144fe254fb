"""A figure together with the numbers that it shows, so that a page can name and copy them. Imports matplotlib."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

import numpy as np
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import ArrayLike, NDArray

from mixln.report.style import SchemeStyle

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Format:
    """For what place a figure is drawn.

    Attributes:
        width: in inches; letters have the same size in all widths.
        legend: whether the figure names its lines itself; a page names them beside it.
    """

    width: float = 9.0
    legend: bool = True


FILE = Format()
"""A file of its own: PNG and SVG under `figures/`."""

PAGE = Format(legend=False)
"""A page on a wide screen, or on paper."""

NARROW = Format(4.3, legend=False)
"""A page on a narrow screen: one column of panels, so that letters keep their size."""


@dataclass(frozen=True)
class Marks:
    """The numbers of one label in one panel, in the order in which they are drawn.

    Attributes:
        axes: the panel.
        label: whose numbers they are.
        x: where they are drawn.
        y: how high they are drawn: the numbers themselves, but in a map of colours.
        value: the numbers.
        low: lower ends of the intervals; None without intervals.
        high: upper ends of the intervals.
    """

    axes: Axes
    label: str
    x: Array
    y: Array
    value: Array
    low: Array | None = None
    high: Array | None = None


@dataclass
class Drawing:
    """A figure and what is drawn in it.

    Attributes:
        figure: of matplotlib.
        columns: what is copied: names of label, place, (second place,) number, and of the ends of its interval.
        by_column: a pointer finds the number at its place on the horizontal axis, however far above or below;
            otherwise the nearest one.
        marks: the numbers.
        artists: what is drawn for each label, so that it can be hidden.
        legend: the labels that a page names beside the figure, with their looks.
        out_of_range: labels of panels to what is said there of numbers outside the axes.
    """

    figure: Figure
    columns: tuple[str, ...]
    by_column: bool = False
    marks: list[Marks] = field(default_factory=list)
    artists: dict[str, list[Artist]] = field(default_factory=dict)
    legend: dict[str, SchemeStyle] = field(default_factory=dict)
    out_of_range: list[str] = field(default_factory=list)

    def add(
        self,
        axes: Axes,
        label: str,
        artists: Iterable[Artist],
        x: ArrayLike,
        value: ArrayLike,
        *,
        y: ArrayLike | None = None,
        low: ArrayLike | None = None,
        high: ArrayLike | None = None,
    ) -> None:
        """Note what was drawn of a label in a panel."""
        self.artists.setdefault(label, []).extend(artists)
        numbers = np.asarray(value, dtype=float)
        self.marks.append(
            Marks(
                axes,
                label,
                np.asarray(x, dtype=float),
                numbers if y is None else np.asarray(y, dtype=float),
                numbers,
                None if low is None else np.asarray(low, dtype=float),
                None if high is None else np.asarray(high, dtype=float),
            )
        )

    @property
    def labels(self) -> list[str]:
        """Whose numbers are drawn, in their order."""
        return list(dict.fromkeys([*self.legend, *self.artists]))


Draw = Callable[[Format], Drawing | None]
"""Draws one figure for any place; None if there is nothing to draw."""
