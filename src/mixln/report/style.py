"""One look for each scheme, the same in every figure and table; knows nothing of matplotlib."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from mixln.report.results import ComparisonResult

# Okabe and Ito's colour-blind-safe palette, without black and without yellow, which is too faint on white.
_COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00")
_BASELINE_COLOR = "#6B6B6B"
_MARKERS = ("o", "s", "^", "D", "v", "P", "X")
# Once the colours are used up they return dashed and hatched: colour is never the only difference.
_LINES = ("-", "--", ":", "-.")
_HATCHES = ("", "////", "....", "xxxx")


@dataclass(frozen=True)
class SchemeStyle:
    """How a scheme is drawn: colour (#rrggbb), and matplotlib's names of line style, marker and hatch."""

    color: str
    line: str
    marker: str
    hatch: str


def scheme_styles(result: ComparisonResult) -> dict[str, SchemeStyle]:
    """A style for each scheme of the comparison, in its order; the baseline is grey."""
    return label_styles([summary.placement for summary in result.summaries], result.baseline)


def label_styles(labels: Iterable[str], baseline: str | None = None) -> dict[str, SchemeStyle]:
    """A style for each label, in their order; the baseline is grey.

    Without a baseline grey ends the palette. Distinct up to 25 labels.
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
    """A scheme label over several lines, broken before `+` where it would exceed `width`, else inside."""
    lines: list[str] = []
    for index, part in enumerate(label.split("+")):
        piece = part if index == 0 else f"+{part}"
        if lines and len(lines[-1]) + len(piece) <= width:
            lines[-1] += piece
        else:
            lines.extend(piece[start : start + width] for start in range(0, max(len(piece), 1), width))
    return "\n".join(lines)
