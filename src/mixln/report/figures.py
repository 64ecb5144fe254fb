"""Every figure of a comparison. Importing this module imports matplotlib."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial

from mixln.report.curve_figures import learning_rate_grid, loss_curves, value_curves
from mixln.report.depth_figures import draw_schemes
from mixln.report.drawing import Draw, Drawing, Format
from mixln.report.results import ComparisonResult


@dataclass(frozen=True)
class FigureKind:
    """A figure of training.

    Attributes:
        name: its file name without suffix.
        title: heading on the page.
        shows: what it shows, in a sentence or two, with places for the fields of `Terms`.
        reading: how to read it.
        bands: what its bands are; said where a scheme has several seeds.
        has_levels: whether it has level lines of the constants.
        draw: draws it; None if the result holds nothing to draw.
    """

    name: str
    title: str
    shows: str
    reading: str
    draw: Callable[[ComparisonResult, Format], Drawing | None]
    bands: str = ""
    has_levels: bool = False


FIGURES: tuple[FigureKind, ...] = (
    FigureKind(
        "loss_curves",
        "Loss during training",
        "Validation loss ({mean}) against the {unit} trained on, each scheme at its best "
        "learning rate. Lines are means over seeds, and the faint lines behind are the smoothed training loss.",
        "Lower is better. A dotted line that ends in a cross is a run that diverged.",
        loss_curves,
        "Bands reach from the lowest to the highest seed. Where they overlap at the end, the order of the lines may be "
        "noise.",
        has_levels=True,
    ),
    FigureKind(
        "learning_rate_grid",
        "Loss by learning rate",
        "Mean validation loss of each scheme at every peak learning rate tried.",
        "The ring marks the rate at which the scheme is judged. A ring at the edge of the grid means that a better "
        "rate may lie beyond it; a flat curve means that the scheme forgives a badly chosen rate.",
        learning_rate_grid,
    ),
)
"""The figures of training of any comparison, in the order of the report."""

ACCURACY = FigureKind(
    "accuracy_curves",
    "Accuracy during training",
    "Top-1 accuracy on the validation images against the images trained on, each scheme at its best learning rate. "
    "Lines are means over seeds.",
    "Higher is better.",
    partial(value_curves, "top1"),
    "Bands reach from the lowest to the highest seed. Where they overlap at the end, the order of the lines may be "
    "noise.",
    has_levels=True,
)
"""Of classifiers of images, behind the loss."""


def described(kind: FigureKind, result: ComparisonResult) -> tuple[str, str]:
    """What a figure shows, and what its level lines are, in the words of the comparison."""
    levels = result.to_beat.levels if kind.has_levels and result.to_beat is not None else ""
    return kind.shows.format(**vars(result.terms)), levels


def figures_of(result: ComparisonResult) -> tuple[FigureKind, ...]:
    """The figures of training of a comparison, in the order of the report."""
    first, *others = FIGURES
    return (first, *([ACCURACY] if result.quantities else []), *others)


def draw_figures(result: ComparisonResult) -> Iterator[tuple[str, Draw]]:
    """What draws each figure, by name, in the order of the report; it gives None where there is nothing to draw."""
    for kind in figures_of(result):
        yield kind.name, partial(kind.draw, result)
    for spec in result.depth_figures:
        yield spec.name, partial(draw_schemes, spec, result)
