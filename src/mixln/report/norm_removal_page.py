"""The page of a norm removal."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from mixln.confidence import fixed
from mixln.report import cells
from mixln.report.html import page_environment, write_plots
from mixln.report.norm_removal import CONTROL, KINDS, NORM_FREE, ORIGINAL, NormRemovalReport, removal_figure
from mixln.report.series import FigureSpec
from mixln.storage import write_file

_FIGURE = FigureSpec(
    "norm_removal",
    "Loss while the norms go",
    "Loss over training steps. Marked lines: on held-out text. Faint lines: in training, smoothed.",
    "Each tick above is a removal; its colour says what was removed. The dotted line is the original model.",
    "lines",
    {},
)


def write_removal_page(
    report: NormRemovalReport, curves: Mapping[str, Sequence[Mapping[str, Any]]], folder: Path, out: Path
) -> Path:
    """Write `figures/` (PNG and SVG) and `report.html`, and return the last one's path.

    Args:
        report: of the removal.
        curves: as `removal_figure` takes them.
        folder: to write to.
        out: the folder of the model without norms, beside `folder`.

    Raises:
        InputError: a file cannot be written.
    """
    draw = partial(removal_figure, curves, report.removals, report.loss_original)
    plots = write_plots({_FIGURE.name: draw}, folder / "figures", {_FIGURE.name: f"{_FIGURE.title} of {report.source}"})
    losses = {ORIGINAL: report.loss_original, CONTROL: report.loss_control, NORM_FREE: report.loss_norm_free}
    files = [f"../{out.name}/norm_removal.json", "figures/", "removal/"]
    page = page_environment().get_template("norm_removal.html.jinja")
    text = page.render(
        result=report,
        losses=[
            (
                label,
                f"{loss:.4f}",
                _perplexity(loss),
                cells.MISSING if label == ORIGINAL else fixed(loss - report.loss_original, "+.4f"),
            )
            for label, loss in losses.items()
            if loss is not None
        ],
        kinds=KINDS,
        figures=[(_FIGURE, "", plots[_FIGURE.name])],
        files=[*files, "control/"] if CONTROL in curves else files,
    )
    return write_file(folder / "report.html", text)


def _perplexity(loss: float) -> str:
    # a model that blew up has a loss whose exponential is no number
    return cells.perplexity(math.exp(loss) if loss < 700 else math.inf)
