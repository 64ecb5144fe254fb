"""Pictures of placements: each kind of block of a stack, from the same parts as the diagrams in text."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Circle, FancyBboxPatch

from mixln.report.canvas import INK
from mixln.report.figure_files import draw_svg
from mixln.report.scheme_diagram import BlockKind, Part, StackDescription, SublayerParts, block_parts
from mixln.storage import write_file

# inches, as all lengths here
_LETTER, _LINE, _PADDING, _GAP, _RADIUS, _MARGIN = 0.071, 0.165, 0.12, 0.13, 0.085, 0.16
_APART = 0.16
_FONT_SIZE = 9.0

# fill and edge
_COLORS = {
    "norm": ("#D9EAF7", "#0072B2"),
    "factor": ("#FCE9CC", "#B07A00"),
    "gate": ("#D5F0E6", "#007A59"),
    "sublayer": ("#EEF0F2", "#5B636B"),
}
_MATHEMATICS = {
    "N_in": r"$N_\mathrm{in}$",
    "N_branch": r"$N_\mathrm{branch}$",
    "N_out": r"$N_\mathrm{out}$",
}


def draw_placement(label: str, stack: StackDescription) -> Figure:
    """Return a picture of a placement: its kinds of blocks side by side, and below what is around them."""
    blocks = [_Block.of(kind) for kind in stack.kinds]
    notes = [line for text in list_notes(stack) for line in textwrap.wrap(text, 44, subsequent_indent="    ")]
    titles = [max(block.width, len(block.title) * _LETTER) for block in blocks]
    width = sum(titles) + 0.35 * (len(blocks) - 1) + 2 * _MARGIN
    # the label is larger and bold, the notes are smaller
    width = max(width, 2 * _MARGIN + max([1.45 * len(label), *(0.9 * len(note) for note in notes)]) * _LETTER)
    head, foot = 0.55, 0.18 * len(notes)
    height = head + max(block.height for block in blocks) + foot + 2 * _MARGIN
    figure = Figure(figsize=(width, height), facecolor="white")
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set_axis_off()
    axes.set_xlim(0, width)
    axes.set_ylim(height, 0)  # from top to bottom, as text runs
    text = {"color": INK, "va": "top", "parse_math": False}
    axes.text(_MARGIN, _MARGIN, label, fontsize=_FONT_SIZE + 1, fontweight="bold", **text)
    left = _MARGIN
    for block, own in zip(blocks, titles, strict=True):
        axes.text(left, _MARGIN + 0.24, block.title, fontsize=_FONT_SIZE - 0.5, **text)
        block.draw(axes, left, _MARGIN + head)
        left += own + 0.35
    for number, note in enumerate(notes):
        axes.text(_MARGIN, height - _MARGIN - foot + 0.18 * number + 0.03, note, fontsize=_FONT_SIZE - 1, **text)
    return figure


def list_notes(stack: StackDescription) -> list[str]:
    """Return notes on a stack besides its blocks, where it differs from most stacks."""
    notes = [f"embedding: {', then '.join(stack.embedding)}"] if stack.embedding else []
    if stack.final_norm != "norm":
        notes.append(f"norm before the head: {stack.final_norm}")
    return [*notes, *(f"init: {rule}" for rule in stack.init)]


def describe_picture(label: str, stack: StackDescription) -> str:
    """Return the picture's content in text: what its file says of itself, and tests compare."""
    parts = [label, *(f"{kind.title}\n{kind.draw()}" for kind in stack.kinds), *list_notes(stack)]
    return "\n\n".join(parts)


@dataclass(frozen=True)
class _Block:
    """Where the three vertical lines of a block are, from its left edge, and how large it is."""

    title: str
    sublayers: tuple[SublayerParts, SublayerParts]
    past: float
    stream: float
    branch: float
    width: float

    @classmethod
    def of(cls, kind: BlockKind) -> _Block:
        sublayers = block_parts(*kind.blocks)
        past = max((_width(part) for one in sublayers for part in one.bypass), default=0.0)
        middle = max((_width(part) for one in sublayers for part in (*one.stream, *one.merged)), default=2 * _RADIUS)
        right = max(_width(part) for one in sublayers for part in one.branch)
        stream = (past + 0.2 if past else 0.0) + middle / 2
        # room for the arrow into the addition, whether or not there are boxes on the stream
        branch = stream + max(middle / 2, 0.15) + 0.2 + right / 2
        return cls(kind.title, sublayers, past / 2, stream, branch, branch + right / 2)

    @property
    def height(self) -> float:
        heights = [_GAP + _boxes_height(parts) + _merged_height(parts) + _APART for parts in self.sublayers]
        return 0.2 + sum(heights) + 0.15

    def draw(self, axes: Axes, left: float, top: float) -> None:
        past, stream, branch = left + self.past, left + self.stream, left + self.branch
        last_bypass = max((number for number, one in enumerate(self.sublayers) if one.bypass), default=-1)
        axes.text(stream, top, "x", ha="center", va="bottom", fontsize=_FONT_SIZE, color=INK, style="italic")
        y = top + 0.2
        _line(axes, [(stream, top + 0.04), (stream, y)])
        if last_bypass >= 0:
            _line(axes, [(stream, y - 0.06), (past, y - 0.06)])
        start = y - 0.06
        for number, parts in enumerate(self.sublayers):
            inner = y + _GAP
            end = inner + _boxes_height(parts)
            _line(axes, [(stream, y), (branch, y), (branch, end), (stream + _RADIUS, end)], arrow=True)
            _line(axes, [(stream, y), (stream, end - _RADIUS)])
            _boxes(axes, parts.branch, branch, inner)
            _boxes(axes, parts.stream, stream, inner)
            if parts.bypass:
                _line(axes, [(past, end), (stream - _RADIUS, end)], arrow=True)
            if number <= last_bypass:
                _line(axes, [(past, start), (past, end)])
            _boxes(axes, parts.bypass, past, inner)
            y = start = end
            after = end + _merged_height(parts)
            following = number + 1 < len(self.sublayers)
            _line(axes, [(stream, end), (stream, after + (_APART if following else 0.25))], arrow=not following)
            _boxes(axes, parts.merged, stream, end + _RADIUS + _GAP / 2)
            _addition(axes, stream, end)
            y = after + _APART


def _boxes_height(parts: SublayerParts) -> float:
    """From the branching to the addition."""
    return max(_column_height(column) for column in (parts.branch, parts.stream, parts.bypass)) + 0.12


def _merged_height(parts: SublayerParts) -> float:
    """From the addition to the end of what is behind it."""
    return _RADIUS + _column_height(parts.merged) + (_GAP if parts.merged else 0.0)


def _column_height(parts: Sequence[Part]) -> float:
    return sum(_height(part) for part in parts) + _GAP * max(0, len(parts) - 1)


def _height(part: Part) -> float:
    return _LINE * len(part.lines) + 0.09


def _width(part: Part) -> float:
    return _LETTER * max(map(len, part.lines)) + 2 * _PADDING


def _boxes(axes: Axes, parts: Sequence[Part], centre: float, top: float) -> None:
    for part in parts:
        width, height = _width(part), _height(part)
        fill, edge = _COLORS[part.kind]
        look = {"boxstyle": "round,pad=0,rounding_size=0.05", "facecolor": fill, "edgecolor": edge, "linewidth": 1.0}
        axes.add_patch(FancyBboxPatch((centre - width / 2, top), width, height, zorder=3, **look))
        for number, text in enumerate(part.lines):
            size = _FONT_SIZE if number == 0 else _FONT_SIZE - 1
            options = {"ha": "center", "va": "center", "fontsize": size, "color": INK, "zorder": 4}
            axes.text(centre, top + 0.045 + _LINE * (number + 0.5), _MATHEMATICS.get(text, text), **options)
        top += height + _GAP


def _addition(axes: Axes, x: float, y: float) -> None:
    axes.add_patch(Circle((x, y), _RADIUS, facecolor="white", edgecolor=INK, linewidth=1.1, zorder=3))
    arm = 0.6 * _RADIUS
    axes.plot([x - arm, x + arm], [y, y], color=INK, linewidth=1.1, zorder=4)
    axes.plot([x, x], [y - arm, y + arm], color=INK, linewidth=1.1, zorder=4)


def _line(axes: Axes, points: Sequence[tuple[float, float]], *, arrow: bool = False) -> None:
    """Draw a line through points, below everything else, with an arrow head at its end if asked."""
    x, y = zip(*points, strict=True)
    axes.plot(x, y, color=INK, linewidth=1.1, zorder=1, solid_joinstyle="round")
    if arrow:
        style = "-|>,head_width=0.18,head_length=0.35"
        look = {"arrowstyle": style, "color": INK, "linewidth": 1.1, "shrinkA": 0, "shrinkB": 0}
        axes.annotate("", points[-1], points[-2], arrowprops=look, zorder=2)


def write_placement_figure(path: Path, label: str, stack: StackDescription) -> Path:
    """Write the picture of a placement as SVG, with its content in text in the file's description.

    Raises:
        InputError: it cannot be written.
    """
    return write_file(path, draw_svg(draw_placement(label, stack), label, describe_picture(label, stack)))
