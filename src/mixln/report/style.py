"""One look for each scheme, the same in every figure and table; knows nothing of matplotlib."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from mixln.report.results import ComparisonResult

# Okabe and Ito's colour-blind-safe palette, without black and without yellow, which is too faint on white; then colours
# that lie as far from all before them as may be (in CIELAB), and stand out from white and from a dark page.
_COLORS = (
    *("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00"),
    *("#552299", "#77AA00", "#771122", "#E0005E", "#665500", "#AA44FF", "#CC8866", "#2233DD", "#005500"),
    *("#BB1188", "#889966", "#1177FF", "#FF00DD", "#553366", "#DD5555", "#00AA44", "#CC77EE", "#FF0022"),
)
_BASELINE_COLOR = "#6B6B6B"
_MARKERS = ("o", "s", "^", "D", "v", "P", "X")
# Once the colours are used up they return dashed and hatched: colour is never the only difference.
_LINES = ("-", "--", ":", "-.")
_HATCHES = ("", "////", "....", "xxxx")


LineStyle = str | tuple[float, tuple[float, ...]]
"""matplotlib's name of a line style, or an offset and a pattern of dashes and gaps."""


@dataclass(frozen=True)
class SchemeStyle:
    """How a scheme is drawn: colour (#rrggbb), and matplotlib's names of line style, marker and hatch."""

    color: str
    line: LineStyle
    marker: str
    hatch: str


def scheme_styles(result: ComparisonResult) -> dict[str, SchemeStyle]:
    """A style for each scheme of the comparison, in its order; the baseline is grey."""
    return label_styles([summary.placement for summary in result.summaries], result.baseline)


def label_styles(labels: Iterable[str], baseline: str | None = None) -> dict[str, SchemeStyle]:
    """A style for each label, in their order; the baseline is grey.

    Without a baseline grey ends the palette. Colours are distinct up to 25 labels; then they return dashed and hatched.
    """
    styles: dict[str, SchemeStyle] = {}
    palette = _COLORS if baseline is not None else (*_COLORS, _BASELINE_COLOR)
    used = 0
    for label in labels:
        if label == baseline:
            styles[label] = SchemeStyle(_BASELINE_COLOR, "-", "o", "")
            continue
        turn, index = divmod(used, len(palette))
        turn %= len(_LINES)
        styles[label] = SchemeStyle(palette[index], _LINES[turn], _MARKERS[used % len(_MARKERS)], _HATCHES[turn])
        used += 1
    return styles


def grouped_styles(groups: Sequence[Mapping[str, str]]) -> dict[str, SchemeStyle]:
    """A style for each label: those of a group share their colour, and differ in line and hatch.

    Args:
        groups: what each label of a group is of, to the label; the same is drawn with the same line in every group.
    """
    colors = label_styles([str(number) for number in range(len(groups))])
    return {
        label: replace(colors[str(number)], line=_LINES[turn % len(_LINES)], hatch=_HATCHES[turn % len(_HATCHES)])
        for number, group in enumerate(groups)
        for turn, label in enumerate(group.values())
    }


def wrap_label(label: str, width: int = 26) -> str:
    """A label over several lines of at most `width` characters.

    It is broken before `+`; a part that is longer than a line after one of `/ , _ - .` or a space; and inside a word
    only if that has no such place.
    """
    lines: list[str] = []
    for index, part in enumerate(label.split("+")):
        piece = part if index == 0 else f"+{part}"
        if lines and len(lines[-1]) + len(piece) <= width:
            lines[-1] += piece
        else:
            lines += _broken(piece, width)
    return "\n".join(lines)


def shorten_label(label: str, width: int, lines: int = 2) -> str:
    """As `wrap_label`, in at most so many lines: the middle of a label that is longer gives way to an ellipsis."""
    text, kept = wrap_label(label, width), len(label)
    while text.count("\n") >= lines:
        kept -= 1
        text = wrap_label(_without_middle(label, kept), width)
    return text


def _without_middle(label: str, kept: int) -> str:
    return f"{label[: -(-kept // 2)]}\N{HORIZONTAL ELLIPSIS}{label[len(label) - kept // 2 :]}"


def _broken(piece: str, width: int) -> list[str]:
    lines = [""]
    for word in re.findall(r".+?(?:[/,_\-. ]+|$)", piece) or [""]:
        if len(lines[-1]) + len(word) <= width:
            lines[-1] += word
        elif len(word) <= width:
            lines.append(word)
        else:
            whole = lines.pop() + word
            lines += [whole[start : start + width] for start in range(0, len(whole), width)]
    return [line for line in lines if line] or [""]
