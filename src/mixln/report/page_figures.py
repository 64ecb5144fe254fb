"""Figures inside a page: drawn for two widths, with colours of the page, and the numbers for its script."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any
from xml.etree import ElementTree

import numpy as np
from markupsafe import Markup
from matplotlib.axes import Axes

from mixln.report import canvas
from mixln.report.drawing import NARROW, PAGE, Array, Draw, Drawing, Marks
from mixln.report.figure_files import draw_svg, lay_out
from mixln.report.style import SchemeStyle

_COLORS = {
    "#ffffff": "var(--card)",
    canvas.INK.lower(): "var(--ink)",
    canvas.FAINT.lower(): "var(--faint)",
    canvas.GRID.lower(): "var(--grid)",
}
"""Colours that follow the page's, which may be dark."""


@dataclass(frozen=True)
class Plot:
    """A figure for a page.

    Attributes:
        wide: SVG for a wide screen and for paper, with what the script has to know of its panels.
        narrow: the same for a narrow screen.
        legend: looks by label, in the order of the numbers that the SVGs give to what is drawn of them.
        data: the numbers, as JSON that can stand in a script element.
    """

    wide: Markup
    narrow: Markup
    legend: dict[str, SchemeStyle]
    data: Markup


def draw_plot(name: str, draw: Draw, drawn: Drawing, alternative: str) -> Plot:
    """Draw a figure for a page.

    Args:
        name: of the figure, unique in the page.
        draw: draws it in other widths.
        drawn: as it was drawn for a file.
        alternative: what it shows, for those who do not see it.
    """
    wide = draw(PAGE) if drawn.legend else drawn
    narrow = draw(NARROW)
    assert wide is not None
    assert narrow is not None
    numbers, places = _distinct(wide.marks)
    svgs = [
        _svg(drawing, f"{name}-{width}", alternative, places) for width, drawing in (("wide", wide), ("narrow", narrow))
    ]
    return Plot(svgs[0], svgs[1], wide.legend, script_json(_data(wide, numbers)))


def script_json(data: Any) -> Markup:
    """JSON for a script element: nothing in it can end the element or begin another."""
    text = json.dumps(data, allow_nan=False, ensure_ascii=True, separators=(",", ":"))
    for character in "<>&":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return Markup(text)


def _distinct(marks: Sequence[Marks]) -> tuple[list[Marks], list[int]]:
    """Marks without repetition (a panel may enlarge another), and for each of all which of these it is."""
    known: dict[tuple[str, bytes, bytes], int] = {}
    distinct: list[Marks] = []
    places: list[int] = []
    for one in marks:
        key = (one.label, one.x.tobytes(), one.value.tobytes())
        if key not in known:
            known[key] = len(distinct)
            distinct.append(one)
        places.append(known[key])
    return distinct, places


def _data(drawing: Drawing, marks: Sequence[Marks]) -> dict[str, Any]:
    labels = list(drawing.legend)
    return {
        "columns": drawing.columns,
        "byColumn": drawing.by_column,
        "series": [
            {
                "label": one.label,
                "legend": labels.index(one.label) if one.label in labels else None,
                "x": _numbers(one.x),
                "y": None if one.y is one.value else _numbers(one.y),
                "value": _numbers(one.value),
                "low": _numbers(one.low),
                "high": _numbers(one.high),
            }
            for one in marks
        ],
    }


def _numbers(values: Array | None) -> list[float | None] | None:
    if values is None:
        return None
    return [float(f"{value:.6g}") if np.isfinite(value) else None for value in values]


def _svg(drawing: Drawing, prefix: str, alternative: str, places: Sequence[int]) -> Markup:
    for number, label in enumerate(drawing.legend):
        for artist in drawing.artists.get(label, []):
            artist.set_gid(f"series-{number}")
    lay_out(drawing.figure)
    root = ElementTree.fromstring(draw_svg(drawing.figure, prefix, letters=True))
    root.attrib.update({"role": "img", "aria-label": alternative, "data-panels": json.dumps(_panels(drawing, places))})
    # letters keep their size where there is room, and shrink with a narrow window
    root.attrib["style"] = f"max-width: {drawing.figure.get_figwidth() * 1.2:g}in"
    for name in ("width", "height", "version"):
        root.attrib.pop(name, None)
    _adopt(root, prefix)
    return Markup(ElementTree.tostring(root, encoding="unicode"))


def _panels(drawing: Drawing, places: Sequence[int]) -> list[dict[str, Any]]:
    """Where each panel is, as shares of the figure from its upper left, what its axes show, and its numbers."""
    panels: dict[Axes, list[int]] = {}
    for marks, place in zip(drawing.marks, places, strict=True):
        panels.setdefault(marks.axes, []).append(place)
    found: list[dict[str, Any]] = []
    for ax, own in panels.items():
        box = ax.get_position()
        found.append(
            {
                "box": [round(one, 5) for one in (box.x0, 1 - box.y1, box.width, box.height)],
                "x": _axis(ax.get_xlim(), ax.get_xscale()),
                "y": _axis(ax.get_ylim(), ax.get_yscale()),
                "series": own,
            }
        )
    return found


def _axis(limits: tuple[float, float], scale: str) -> dict[str, Any]:
    return {"low": float(limits[0]), "high": float(limits[1]), "log": scale == "log"}


def _adopt(root: ElementTree.Element, prefix: str) -> None:
    """Make an SVG file part of a page: no namespaces, ids of its own, colours of the page, no style for all."""
    kept = set(re.findall(r"(?:url\(#|href=\"#)([^)\"]+)", ElementTree.tostring(root, encoding="unicode")))
    for parent in list(root.iter()):
        for child in list(parent):
            if child.tag.rpartition("}")[2] in ("metadata", "style"):
                parent.remove(child)
    for element in root.iter():
        element.tag = element.tag.rpartition("}")[2]
        attributes = {name.rpartition("}")[2]: value for name, value in element.attrib.items()}
        element.attrib.clear()
        for name, value in attributes.items():
            if name != "id":
                element.set(name, _of_page(name, value, prefix))
            elif value.startswith("series-"):
                element.set("data-series", value.removeprefix("series-"))
            elif value in kept:
                element.set("id", f"{prefix}-{value}")


def _of_page(name: str, value: str, prefix: str) -> str:
    if name == "href" and value.startswith("#"):
        return f"#{prefix}-{value[1:]}"
    if name in ("style", "clip-path", "fill", "stroke"):
        value = re.sub(r"url\(#", f"url(#{prefix}-", value)
        return re.sub("#[0-9a-f]{6}", lambda found: page_color(found[0]), value)
    return value


def page_color(color: str) -> str:
    """A colour (#rrggbb) as a page has it."""
    return _COLORS.get(color.lower(), color)
