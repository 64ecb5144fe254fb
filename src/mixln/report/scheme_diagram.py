"""A plan, drawn in text: the parts of the formula that a block has, and the kinds of blocks that a stack has.

Everything here is read off the plan's fields, so that a scheme registered anywhere can be drawn.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from mixln.placement.plan import NORM, BlockPlan, InitRule, NormPlan, QKVNormPlan, Role, StackPlan, SublayerPlan
from mixln.placement.words import layer_ranges

_LETTERS = {"query": "q", "key": "k", "value": "v"}
_GAP = 4


@dataclass(frozen=True)
class Part:
    """One thing that stands in a block.

    Attributes:
        kind: what it is.
        lines: its label, one line or more.
    """

    kind: Literal["norm", "factor", "gate", "sublayer"]
    lines: tuple[str, ...]


@dataclass(frozen=True)
class SublayerParts:
    """What stands where around one sublayer, each in the order in which it runs.

    Attributes:
        stream: on the stream, before the addition: rho, S.
        branch: on the branch: N_in, gain, F, N_branch.
        merged: after the addition: N_out, P.
        bypass: on the way of the block's input to the addition; empty without bypass.
    """

    stream: tuple[Part, ...]
    branch: tuple[Part, ...]
    merged: tuple[Part, ...]
    bypass: tuple[Part, ...]


@dataclass(frozen=True)
class BlockKind:
    """The blocks of a stack that have the same parts, although maybe with other numbers.

    Attributes:
        layers: their positions, from 1.
        blocks: their plans, in that order.
    """

    layers: tuple[int, ...]
    blocks: tuple[BlockPlan, ...]

    @property
    def title(self) -> str:
        """Such as `layer 4` or `layers 1-3, 7`."""
        return layer_ranges(self.layers)

    def draw(self) -> str:
        """Return the diagram of all of them."""
        return draw_block(*self.blocks)


@dataclass(frozen=True)
class StackDescription:
    """What a placement makes of a stack, in words.

    Attributes:
        embedding: what happens to the embedding's output, in order; empty: nothing.
        kinds: the kinds of blocks, by their first layer.
        final_norm: the norm before the head, or "none".
        init: how matrices are drawn that are not drawn as a model does by default; one line for each rule.
    """

    embedding: tuple[str, ...]
    kinds: tuple[BlockKind, ...]
    final_norm: str
    init: tuple[str, ...]


def describe_stack(plan: StackPlan) -> StackDescription:
    """Return the description of a stack, with blocks put together that differ in numbers (a gain) or init alone."""
    found: dict[tuple[SublayerPlan, SublayerPlan], list[int]] = {}
    for position, block in enumerate(plan.blocks):
        found.setdefault((_without_numbers(block.attention), _without_numbers(block.feed_forward)), []).append(position)
    embedding: list[str] = []
    if plan.embedding_scale != 1:
        scale = plan.embedding_scale
        embedding.append("times sqrt(d)" if scale == "sqrt_hidden_size" else f"times {scale:.3g}")
    if plan.embedding_norm is not None:
        embedding.append(_with_kind("norm", plan.embedding_norm))
    return StackDescription(
        embedding=tuple(embedding),
        kinds=tuple(
            BlockKind(tuple(i + 1 for i in positions), tuple(plan.blocks[i] for i in positions))
            for positions in found.values()
        ),
        final_norm="none" if plan.final_norm is None else _with_kind("norm", plan.final_norm),
        init=_describe_init(plan),
    )


def block_parts(*blocks: BlockPlan) -> tuple[SublayerParts, SublayerParts]:
    """Return what stands in a block, by sublayer: the attention's, the feed-forward's.

    Args:
        blocks: with the same parts; numbers in which they differ are shown as `first .. last`.
    """
    attention = _sublayer_parts("attention", [block.attention for block in blocks])
    return attention, _sublayer_parts("feed-forward", [block.feed_forward for block in blocks])


def draw_block(*blocks: BlockPlan) -> str:
    """Return the diagram of a block: its stream from top to bottom, at the right of it the branches.

    Only parts that are there are drawn: N_in, gain, attention or feed-forward with the norms inside of it, N_branch;
    rho and the gate S on the stream; N_out and the gate P after the addition; the bypass at the left. The kind of a
    norm and its groups are said where they are not the architecture's own.

    Args:
        blocks: with the same parts; numbers in which they differ are shown as `first .. last`.
    """
    sublayers = block_parts(*blocks)
    left = _width([part for one in sublayers for part in one.bypass])
    middle = _width([part for one in sublayers for part in (*one.stream, *one.merged)])
    right = _width([part for one in sublayers for part in one.branch])
    # columns of the three vertical lines: the block's input going past, the stream, the branch
    past = left // 2
    stream = past + (left - left // 2 + _GAP if left else 0) + middle // 2
    branch = stream + middle // 2 + _GAP + right // 2
    # the block's input goes past as far as the last sublayer that takes it in
    last_bypass = max((number for number, one in enumerate(sublayers) if one.bypass), default=-1)

    canvas = _Canvas()
    canvas.add((stream, "x"))
    if left:
        canvas.add(_wire(past, "╭", stream, "┤"))
    for number, parts in enumerate(sublayers):
        ends = [past] if number <= last_bypass else []
        canvas.add(*_lines(stream, *ends))
        canvas.add(*_lines(*ends), _wire(stream, "├", branch, "╮"))
        boxes = {past: _boxes(parts.bypass, left), stream: _boxes(parts.stream, middle)}
        canvas.add_boxes({**boxes, branch: _boxes(parts.branch, right)}, [*ends, stream, branch])
        ends = [past] if number < last_bypass else []
        bypass = [_wire(past, "├" if ends else "╰", stream - 1, "►")] if parts.bypass else []
        canvas.add(*_lines(*ends), *bypass, _wire(stream, "⊕", branch, "╯"), (stream + 1, "◄"))
        canvas.add_boxes({stream: _boxes(parts.merged, middle)}, [*ends, stream])
    canvas.add(*_lines(stream))
    canvas.add((stream, "▼"))
    return canvas.text()


class _Canvas:
    """Rows of characters, from top to bottom."""

    def __init__(self) -> None:
        self._rows: list[dict[int, str]] = []

    def add(self, *texts: tuple[int, str]) -> None:
        """Add a row of texts, each with its first column; of two at one place the later one is seen."""
        self._rows.append({column: one for start, text in texts for column, one in enumerate(text, start)})

    def add_boxes(self, boxes: Mapping[int, Sequence[str]], wired: Sequence[int]) -> None:
        """Add boxes side by side, around the given columns, and lines on in those that are wired."""
        for offset in range(max(map(len, boxes.values()))):
            inside = [(centre, rows[offset]) for centre, rows in boxes.items() if offset < len(rows)]
            self.add(*_lines(*wired), *((centre - len(text) // 2, text) for centre, text in inside))

    def text(self) -> str:
        """Return the rows."""
        return "\n".join("".join(row.get(i, " ") for i in range(max(row, default=-1) + 1)) for row in self._rows)


def _lines(*columns: int) -> list[tuple[int, str]]:
    return [(column, "│") for column in columns]


def _wire(start: int, first: str, end: int, last: str) -> tuple[int, str]:
    return start, first + "─" * (end - start - 1) + last


def _width(parts: Sequence[Part]) -> int:
    """Return the width of the boxes of these parts, borders included: odd, so that a line can leave at the centre."""
    longest = max((len(text) for part in parts for text in part.lines), default=0)
    return 0 if longest == 0 else longest + (5 if longest % 2 == 0 else 4)


def _boxes(parts: Sequence[Part], width: int) -> list[str]:
    """Return the rows of one box with a compartment for each part, a line entering above and leaving below."""
    if not parts:
        return []
    half = width // 2 - 1
    rows: list[str] = []
    for number, part in enumerate(parts):
        rows.append(f"├{'─' * (width - 2)}┤" if number else f"┌{'─' * half}┴{'─' * half}┐")
        rows.extend(f"│{text:^{width - 2}}│" for text in part.lines)
    return [*rows, f"└{'─' * half}┬{'─' * half}┘"]


def _sublayer_parts(name: str, plans: Sequence[SublayerPlan]) -> SublayerParts:
    plan = plans[0]
    gain = _factor("gain", [one.gain for one in plans], absent=1)
    scales = [one.residual_scale for one in plans if one.residual_scale != "learned"]
    scale = _factor("rho", scales, absent=1) if scales else (Part("factor", ("rho learned",)),)
    inner = () if plan.qkv_norm is None else _describe_qkv(plan.qkv_norm)
    return SublayerParts(
        stream=(*scale, *_gate("S", plan.gate == "stream")),
        branch=(
            *_norm("N_in", plan.input_norm),
            *gain,
            Part("sublayer", (name, *inner)),
            *_norm("N_branch", plan.branch_norm),
        ),
        merged=(*_norm("N_out", plan.output_norm), *_gate("P", plan.gate == "output")),
        bypass=_factor("bypass", [one.bypass for one in plans], absent=0),
    )


def _norm(role: str, plan: NormPlan | None) -> tuple[Part, ...]:
    return () if plan is None else (Part("norm", (role, *_kind(plan))),)


def _gate(role: str, is_there: bool) -> tuple[Part, ...]:
    return (Part("gate", (f"{role} gate",)),) if is_there else ()


def _factor(name: str, values: Sequence[float], *, absent: float) -> tuple[Part, ...]:
    if all(value == absent for value in values):
        return ()
    return (Part("factor", (f"{name} = {_range(values)}",)),)


def _range(values: Sequence[float]) -> str:
    first, last = f"{values[0]:.3g}", f"{values[-1]:.3g}"
    return first if len(set(values)) == 1 else f"{first} .. {last}"


def _with_kind(what: str, plan: NormPlan) -> str:
    return " ".join((what, *(f"({kind})" for kind in _kind(plan))))


def _kind(plan: NormPlan) -> tuple[str, ...]:
    """Return a line on a norm's kind and groups, or none where they are the architecture's own."""
    kind = () if plan.kind == NORM.kind else (plan.kind, f"slope {plan.slope:g}")
    groups = () if plan.groups == 1 else (f"{plan.groups} groups",)
    return (", ".join((*kind, *groups)),) if kind or groups else ()


def _describe_qkv(plan: QKVNormPlan) -> tuple[str, ...]:
    letters = ", ".join(_LETTERS[projection] for projection in plan.projections)
    return f"norm of {letters}", "per head" if plan.per_head else "over the full width", *_kind(plan.norm)


def _describe_init(plan: StackPlan) -> tuple[str, ...]:
    """Return a line for each rule that is not the model's own, with the roles that it is for."""
    lines = [] if plan.init == InitRule() else [f"std {_describe_rule(plan.init)}"]
    found: dict[InitRule, dict[Role, None]] = {}
    for block in plan.blocks:
        for role, rule in block.init.items():
            found.setdefault(rule, {})[role] = None
    return (*lines, *(f"{', '.join(roles)}: std {_describe_rule(rule)}" for rule, roles in found.items()))


def _describe_rule(rule: InitRule) -> str:
    scale = {"base": "of the model", "small": "sqrt(2/(5d))", "xavier": "sqrt(2/(fan_in+fan_out))"}[rule.distribution]
    return scale if rule.gain == 1 else f"{scale} * {rule.gain:.3g}"


def _without_numbers(plan: SublayerPlan) -> SublayerPlan:
    """Return the plan with the same value for all numbers in which blocks of one kind may differ."""
    return replace(
        plan,
        gain=1.0,
        residual_scale="learned" if plan.residual_scale == "learned" else 1.0,
        # with and without a bypass are two kinds: one has a line more
        bypass=float(plan.bypass != 0),
    )
