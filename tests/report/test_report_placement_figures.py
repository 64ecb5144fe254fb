"""Pictures of placements: every label lies in its box, no box on another, and all in the picture."""

from __future__ import annotations

import itertools

import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patches import FancyBboxPatch
from matplotlib.transforms import Bbox

from mixln.placement import (
    NORM,
    BlockPlan,
    NormPlan,
    Placement,
    QKVNormPlan,
    StackPlan,
    SublayerPlan,
    list_modifiers,
    list_schemes,
)
from mixln.report.figure_files import draw_svg
from mixln.report.placement_figures import describe_picture, draw_placement
from mixln.report.scheme_diagram import describe_stack

EVERYTHING = SublayerPlan(
    input_norm=NormPlan(groups=4),
    gain=0.5,
    branch_norm=NormPlan(kind="dyt", slope=0.25),
    output_norm=NORM,
    residual_scale=2.0,
    bypass=3.0,
    gate="stream",
    qkv_norm=QKVNormPlan(("query", "key", "value"), per_head=False),
)
PLACEMENTS = [
    *list_schemes(),
    *(f"pre+{modifier}" for modifier in list_modifiers()),
    "mix(alpha=0.5)+gpas+dyt(slope=0.2, attention_slope=0.8)+scaled_embed",
    "hybrid(first_pre=true)",
]
PLANS = {text: Placement.parse(text).plan(12) for text in PLACEMENTS}
PLANS["everything"] = StackPlan((BlockPlan(EVERYTHING, EVERYTHING), BlockPlan(SublayerPlan(), EVERYTHING)), 2)


@pytest.mark.parametrize("label", PLANS)
def test_nothing_is_drawn_over_anything_else(label: str) -> None:
    figure = draw_placement(label, describe_stack(PLANS[label]))
    texts, boxes = extents(figure)
    everything = figure.get_window_extent()
    for box in [*texts.values(), *boxes]:
        assert everything.x0 <= box.x0 <= box.x1 <= everything.x1
        assert everything.y0 <= box.y0 <= box.y1 <= everything.y1
    for one, other in itertools.combinations(boxes, 2):
        assert Bbox.intersection(one, other) is None
    for one, other in itertools.combinations(texts.values(), 2):
        # the lines of a label may touch
        common = Bbox.intersection(one, other)
        assert common is None or common.height < 0.25 * min(one.height, other.height)
    for box in boxes:
        assert any(box.contains(*text.min) and box.contains(*text.max) for text in texts.values())
    for text in texts.values():
        for box in boxes:
            if Bbox.intersection(text, box) is not None:
                assert box.contains(*text.min)
                assert box.contains(*text.max)


def extents(figure: Figure) -> tuple[dict[str, Bbox], list[Bbox]]:
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    (axes,) = figure.axes
    renderer = canvas.get_renderer()
    texts = {f"{i} {text.get_text()}": text.get_window_extent(renderer) for i, text in enumerate(axes.texts)}
    boxes = [patch.get_window_extent(renderer) for patch in axes.patches if isinstance(patch, FancyBboxPatch)]
    return {name: box for name, box in texts.items() if name.split(maxsplit=1)[1:]}, boxes


def test_a_picture_says_in_text_what_it_shows() -> None:
    stack = describe_stack(PLANS["pre+scaled_init"])
    text = describe_picture("pre+scaled_init", stack)
    assert text.startswith("pre+scaled_init\n\nlayers 1-12\n")
    assert stack.kinds[0].draw() in text
    assert text.endswith("init: attention_output, down: std sqrt(2/(5d)) * 0.204")
    svg = draw_svg(draw_placement("pre+scaled_init", stack), "pre+scaled_init", text).decode()
    assert stack.kinds[0].draw() in svg
