"""Figures as files. Importing this module imports matplotlib."""

from __future__ import annotations

from collections.abc import Iterable
from io import BytesIO
from pathlib import Path

import matplotlib
from matplotlib.figure import Figure
from matplotlib.layout_engine import PlaceHolderLayoutEngine

from mixln.report.drawing import FILE, Draw, Drawing
from mixln.storage import remove_file, write_file


def draw_svg(figure: Figure, salt: str, description: str | None = None, *, letters: bool = False) -> bytes:
    """The figure as SVG, the same bytes each time; `salt` sets its internal ids apart from other figures'.

    A `description` goes into the metadata of the file. Text is drawn as curves, which look the same everywhere, or with
    `letters` as text.
    """
    buffer = BytesIO()
    kind = "none" if letters else "path"
    with matplotlib.rc_context({"svg.hashsalt": f"mixln-{salt}", "svg.fonttype": kind}):
        figure.savefig(buffer, format="svg", metadata={"Date": None, "Description": description})
    return buffer.getvalue()


def lay_out(figure: Figure) -> None:
    """Place everything in the figure, once and for all formats."""
    if not isinstance(figure.get_layout_engine(), PlaceHolderLayoutEngine | None):
        figure.draw_without_rendering()
        figure.set_layout_engine("none")


def write_figure(figure: Figure, name: str, folder: Path) -> None:
    """Write a figure as PNG (150 dots per inch) and SVG.

    Raises:
        InputError: a file cannot be written.
    """
    lay_out(figure)
    write_file(folder / f"{name}.svg", draw_svg(figure, name))
    buffer = BytesIO()
    figure.savefig(buffer, format="png", dpi=150)
    write_file(folder / f"{name}.png", buffer.getvalue())


def write_drawings(drawings: Iterable[tuple[str, Draw]], folder: Path) -> dict[str, Drawing]:
    """Write figures by name as PNG and SVG; where there is none, those of an earlier result go.

    Returns:
        The drawing of each figure that there is, by name.

    Raises:
        InputError: a file cannot be written or removed.
    """
    drawn: dict[str, Drawing] = {}
    for name, draw in drawings:
        if drawing := draw(FILE):
            write_figure(drawing.figure, name, folder)
            drawn[name] = drawing
        else:
            for suffix in ("png", "svg"):
                remove_file(folder / f"{name}.{suffix}")
    return drawn
