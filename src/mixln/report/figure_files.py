"""Figures as files. Importing this module imports matplotlib."""

from __future__ import annotations

from collections.abc import Iterable
from io import BytesIO
from pathlib import Path

import matplotlib
from matplotlib.figure import Figure

from mixln.storage import remove_file, write_file


def draw_svg(figure: Figure, salt: str, description: str | None = None) -> bytes:
    """The figure as SVG, the same bytes each time; `salt` sets its internal ids apart from other figures'.

    A `description` goes into the metadata of the file.
    """
    buffer = BytesIO()
    with matplotlib.rc_context({"svg.hashsalt": f"mixln-{salt}", "svg.fonttype": "path"}):
        figure.savefig(buffer, format="svg", metadata={"Date": None, "Description": description})
    return buffer.getvalue()


def write_drawings(drawings: Iterable[tuple[str, Figure | None]], folder: Path) -> dict[str, bytes]:
    """Write figures by name as PNG (150 dots per inch) and SVG; None removes those of an earlier result.

    Returns:
        The SVG of each figure, by name.

    Raises:
        InputError: a file cannot be written or removed.
    """
    svgs: dict[str, bytes] = {}
    for name, figure in drawings:
        if figure is None:
            for suffix in ("png", "svg"):
                remove_file(folder / f"{name}.{suffix}")
            continue
        svgs[name] = draw_svg(figure, name)
        write_file(folder / f"{name}.svg", svgs[name])
        buffer = BytesIO()
        figure.savefig(buffer, format="png", dpi=150)
        write_file(folder / f"{name}.png", buffer.getvalue())
    return svgs
