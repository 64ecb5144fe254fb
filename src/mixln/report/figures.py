"""Every figure of a comparison, and how it is written. Importing this module imports matplotlib."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path

import matplotlib
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from mixln.files import remove_file, write_file
from mixln.report.aggregate import depth_of
from mixln.report.cells import learning_rates
from mixln.report.curve_figures import learning_rate_grid, loss_curves
from mixln.report.depth_figures import angular_distance_heatmaps, gradient_norms, removal_loss, variance
from mixln.report.results import ComparisonResult

__all__ = [
    "FIGURES",
    "FigureKind",
    "angular_distance_heatmaps",
    "draw_svg",
    "gradient_norms",
    "learning_rate_grid",
    "loss_curves",
    "removal_loss",
    "variance",
    "write_figures",
]

_PNG_DPI = 150


@dataclass(frozen=True)
class FigureKind:
    """A figure of the report.

    Attributes:
        name: its file name without suffix.
        title: heading on the page.
        shows: what it shows, in a sentence or two.
        reading: how to read it.
        draw: draws it; works for every result, with a message in place of what is missing.
        applies: whether this result holds anything to draw.
    """

    name: str
    title: str
    shows: str
    reading: str
    draw: Callable[[ComparisonResult], Figure]
    applies: Callable[[ComparisonResult], bool]

    @property
    def needs_depth(self) -> bool:
        """Whether it draws depth measures, which a comparison may not have taken."""
        return self.applies is _has_depth


def _has_depth(result: ComparisonResult) -> bool:
    return bool(depth_of(result))


def _has_curves(result: ComparisonResult) -> bool:
    return any(run.validation_curve or run.train_curve for run in result.runs)


def _has_grid(result: ComparisonResult) -> bool:
    return len(learning_rates(result)) > 1


FIGURES: tuple[FigureKind, ...] = (
    FigureKind(
        "loss_curves",
        "Loss during training",
        "Validation loss (total loss / total predicted tokens) against the tokens trained on, each scheme at its best "
        "learning rate. Lines are means over seeds, bands reach from the lowest to the highest seed, and the faint "
        "lines behind are the smoothed training loss.",
        "Lower is better. Where bands overlap at the end, the order of the lines may be noise. A dotted line that ends "
        "in a cross is a run that diverged.",
        loss_curves,
        _has_curves,
    ),
    FigureKind(
        "learning_rate_grid",
        "Loss by learning rate",
        "Mean validation loss of each scheme at every peak learning rate tried.",
        "The ring is the rate at which the scheme is judged. A ring at the edge of the grid means that a better rate "
        "may lie beyond it; a flat curve means that the scheme forgives a badly chosen rate.",
        learning_rate_grid,
        _has_grid,
    ),
    FigureKind(
        "gradient_norms",
        "Gradient norm by layer at initialisation",
        "L2 norm, over all parameters of a layer, of the loss gradient before the first step.",
        "A flat line gives every layer a like share of the first updates. Pre-LN typically falls with depth, Post-LN "
        "rises; large values near the end make warmup necessary.",
        gradient_norms,
        _has_depth,
    ),
    FigureKind(
        "angular_distance",
        "Angular distance between layers",
        "d(l, n) = arccos(cos(x_l, x_{l+n})) / π, where x_l is the input of block l, averaged over tokens: how far "
        "the n blocks from l on turn the hidden state.",
        "Dark cells are blocks of layers that hardly change their input: candidates for removal. Read along the "
        "bottom row (n = 1) to see what each single layer does. All panels share one scale.",
        angular_distance_heatmaps,
        _has_depth,
    ),
    FigureKind(
        "removal_loss",
        "Harm done by removing a layer",
        "Validation loss without layer l minus validation loss with all layers, after training, with no healing.",
        "Tall bars are layers the model needs; bars near zero are dead weight. Bars that reach the upper edge are cut "
        "off there and carry their value. Whiskers run from the lowest to the highest seed.",
        removal_loss,
        _has_depth,
    ),
    FigureKind(
        "variance",
        "Variance by layer",
        "Variance over channels of the hidden state after each layer, averaged over tokens, after training.",
        "A steep rise means that later layers add ever less to an ever larger residual stream, which drives them "
        "toward the identity (the curse of depth). A flat line keeps the share of every layer alike.",
        variance,
        _has_depth,
    ),
)
"""The figures in the order of the report."""


def draw_svg(figure: Figure, salt: str, description: str | None = None) -> bytes:
    """The figure as SVG, the same bytes each time; `salt` sets its internal ids apart from other figures'.

    A `description` goes into the metadata of the file.
    """
    buffer = BytesIO()
    with matplotlib.rc_context({"svg.hashsalt": f"mixln-{salt}", "svg.fonttype": "path"}):
        figure.savefig(buffer, format="svg", metadata={"Date": None, "Description": description})
    return buffer.getvalue()


def draw_png(figure: Figure) -> bytes:
    """The figure as PNG at 150 dots per inch."""
    buffer = BytesIO()
    FigureCanvasAgg(figure).print_png(buffer)
    return buffer.getvalue()


def svg_figures(result: ComparisonResult) -> dict[str, bytes]:
    """SVG of every figure that applies to the result, by name, in the order of the report."""
    return {kind.name: draw_svg(kind.draw(result), kind.name) for kind in FIGURES if kind.applies(result)}


def write_figures(result: ComparisonResult, folder: Path) -> dict[str, Path]:
    """Writes every figure that applies as PNG and SVG.

    Figures of an earlier result that do not apply to this one are removed, so that the folder tells one story.

    Returns:
        file name -> path, for example `loss_curves.png`.

    Raises:
        InputError: a file cannot be written or removed.
    """
    written: dict[str, Path] = {}
    for kind in FIGURES:
        if not kind.applies(result):
            for suffix in ("png", "svg"):
                remove_file(folder / f"{kind.name}.{suffix}")
            continue
        figure = kind.draw(result)
        written[f"{kind.name}.svg"] = write_file(folder / f"{kind.name}.svg", draw_svg(figure, kind.name))
        figure.set_dpi(_PNG_DPI)
        written[f"{kind.name}.png"] = write_file(folder / f"{kind.name}.png", draw_png(figure))
    return written
