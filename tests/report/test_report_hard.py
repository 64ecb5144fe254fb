"""Reports that are hard to draw: no text on another or outside of the figure, no number hidden, none flattened."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from functools import partial

import numpy as np
import pytest
from hard_reports import REGISTRY, hard_reports
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.text import Text
from matplotlib.transforms import Bbox

from mixln.report.depth_figures import draw_models
from mixln.report.depth_report import DepthReport
from mixln.report.drawing import FILE, NARROW, Drawing, Format
from mixln.report.figure_files import lay_out
from mixln.report.figures import draw_figures
from mixln.report.style import label_styles

FAST = ("removal", "angular_distance", "shares", "loss_curves", "learning_rate_grid")
REPORTS = hard_reports()
LEGIBLE = 8.5


def names_of(report: str) -> list[str]:
    found = REPORTS[report]
    if isinstance(found, DepthReport):
        return [spec.name for spec in found.figures]
    return [name for name, _ in draw_figures(found)]


def drawing_of(report: str, name: str, form: Format) -> Drawing | None:
    found = REPORTS[report]
    if isinstance(found, DepthReport):
        draws = {spec.name: partial(draw_models, spec, found.models) for spec in found.figures}
    else:
        draws = dict(draw_figures(found))
    drawing = draws[name](form)
    if drawing is not None:
        FigureCanvasAgg(drawing.figure)
        lay_out(drawing.figure)
    return drawing


CASES = [
    pytest.param(
        *(report, name, form),
        marks=() if name in FAST and form is FILE else pytest.mark.slow,
        id=f"{report}-{name}-{form.width} inches",
    )
    for report in REPORTS
    for name in names_of(report)
    for form in (FILE, NARROW)
]


@pytest.mark.parametrize(("report", "name", "form"), CASES)
def test_a_hard_figure_shows_its_data(report: str, name: str, form: Format) -> None:
    if (drawing := drawing_of(report, name, form)) is not None:
        check_texts_can_be_read(drawing)
        check_every_number_is_in_its_panel_or_said_to_be_outside(drawing)
        check_nothing_is_flattened(drawing)


def shown_texts(figure: Figure) -> Iterator[Text]:
    hidden: set[Text] = set()
    for ax in figure.axes:
        for axis in (ax.xaxis, ax.yaxis):
            low, high = sorted(axis.get_view_interval())
            room = 1e-9 * (high - low)
            ticks = [*axis.get_major_ticks(), *axis.get_minor_ticks()]
            outside = [tick for tick in ticks if not low - room <= tick.get_loc() <= high + room]
            hidden |= {label for tick in outside for label in (tick.label1, tick.label2)}
    for text in figure.findobj(Text):
        if isinstance(text, Text) and text.get_visible() and text.get_text().strip() and text not in hidden:
            yield text


def check_texts_can_be_read(drawing: Drawing) -> None:
    renderer = drawing.figure.canvas.get_renderer()  # pyright: ignore[reportAttributeAccessIssue]
    boxes = [(text.get_text(), text.get_window_extent(renderer)) for text in shown_texts(drawing.figure)]
    canvas = drawing.figure.bbox
    for label, box in boxes:
        inside = Bbox.intersection(box, canvas)
        assert inside is not None, label
        assert inside.width >= box.width - 2, label
        assert inside.height >= box.height - 2, label
    for (one, first), (other, second) in itertools.combinations(boxes, 2):
        common = Bbox.intersection(first, second)
        assert common is None or min(common.width, common.height) < 1, f"{one!r} on {other!r}"
    assert min(float(text.get_fontsize()) for text in shown_texts(drawing.figure)) >= LEGIBLE


def check_every_number_is_in_its_panel_or_said_to_be_outside(drawing: Drawing) -> None:
    for marks in drawing.marks:
        low, high = marks.axes.get_ylim()
        left, right = marks.axes.get_xlim()
        finite = marks.value[np.isfinite(marks.value) & (marks.x >= left) & (marks.x <= right)]
        if not is_map(marks.axes):
            room = 1e-6 * (high - low)
            outside = finite[(finite < low - room) | (finite > high + room)]
            title = marks.axes.get_title(loc="left")
            words = ("\N{UPWARDS ARROW}", "\N{DOWNWARDS ARROW}", "outside the axis", "not above 0")
            assert not outside.size or any(word in title for word in words), title
        missing = marks.value.size - np.isfinite(marks.value).sum()
        if missing and drawing.by_column:
            assert "no finite number" in marks.axes.get_title(loc="left")


def check_nothing_is_flattened(drawing: Drawing) -> None:
    """Of panels with one scale the largest bar is at least a third of it; a map uses a third of its colours."""
    for ax in drawing.figure.axes:
        if is_map(ax):
            (image,) = ax.images
            drawn, top = image.get_array(), image.get_clim()[1]
            assert drawn is not None
            assert top is not None
            assert not drawn.any() or drawn.max() >= top / 3
    bars = [(ax, max(heights)) for ax in drawing.figure.axes if (heights := bar_heights(ax))]
    for _, same_scale in itertools.groupby(sorted(bars, key=limits), key=limits):
        heights = list(same_scale)
        low, high = heights[0][0].get_ylim()
        tallest = max(height for _, height in heights)
        assert tallest == 0 or tallest >= (high - low) / 3


def limits(bar: tuple[Axes, float]) -> tuple[float, float]:
    return bar[0].get_ylim()


def bar_heights(ax: Axes) -> list[float]:
    return [abs(patch.get_height()) for patch in ax.patches if isinstance(patch, Rectangle)]


def is_map(ax: Axes) -> bool:
    return bool(ax.images)


def test_colours_of_schemes_are_distinct() -> None:
    assert len({style.color for style in label_styles(REGISTRY, "pre").values()}) == len(REGISTRY)
    labels = [str(number) for number in range(60)]
    assert len({style.color for style in label_styles(labels[:25]).values()}) == 25
    assert len({(style.color, style.line) for style in label_styles(labels).values()}) == 60


def test_a_model_has_its_colour_in_every_figure() -> None:
    """Also where an earlier model lacks what the figure shows."""
    found = REPORTS["missing and infinite values"]
    assert isinstance(found, DepthReport)
    specs = {spec.name: spec for spec in found.figures}
    colors = {}
    for name in ("removal", "block_influence"):
        drawing = draw_models(specs[name], found.models)
        assert drawing is not None
        panels = {marks.label: marks.axes for marks in drawing.marks}
        colors[name] = panels["nothing finite"].patches[0].get_facecolor()
    assert colors["removal"] == colors["block_influence"]
