"""Every figure of a comparison. Importing this module imports matplotlib."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial

from mixln.report.curve_figures import learning_rate_grid, loss_curves
from mixln.report.depth_figures import draw_schemes
from mixln.report.drawing import Draw, Drawing, Format
from mixln.report.results import ComparisonResult


@dataclass(frozen=True)
class FigureKind:
    """A figure of training.

    Attributes:
        name: its file name without suffix.
        title: heading on the page.
        shows: what it shows, in a sentence or two.
        reading: how to read it.
        bands: what its bands are; said where a scheme has several seeds.
        levels: what its level lines are; said where the constants are known.
        draw: draws it; None if the result holds nothing to draw.
    """

    name: str
    title: str
    shows: str
    reading: str
    draw: Callable[[ComparisonResult, Format], Drawing | None]
    bands: str = ""
    levels: str = ""


FIGURES: tuple[FigureKind, ...] = (
    FigureKind(
        "loss_curves",
        "Loss during training",
        "Validation loss (total loss / total predicted tokens) against the tokens trained on, each scheme at its best "
        "learning rate. Lines are means over seeds, and the faint lines behind are the smoothed training loss.",
        "Lower is better. A dotted line that ends in a cross is a run that diverged.",
        loss_curves,
        "Bands reach from the lowest to the highest seed. Where they overlap at the end, the order of the lines may be "
        "noise.",
        "The level lines are two constants: the loss of token frequencies alone (upper) and of token pairs (lower). A "
        "run that ends at the upper line has not learned word order.",
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
"""The figures of training, in the order of the report."""


def draw_figures(result: ComparisonResult) -> Iterator[tuple[str, Draw]]:
    """What draws each figure, by name, in the order of the report; it gives None where there is nothing to draw."""
    for kind in FIGURES:
        yield kind.name, partial(kind.draw, result)
    for spec in result.depth_figures:
        yield spec.name, partial(draw_schemes, spec, result)
