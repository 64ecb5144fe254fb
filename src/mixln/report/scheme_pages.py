"""Schemes and modifiers for the terminal: a table of all, and a page on one. Knows registry and plans alone."""

from __future__ import annotations

import textwrap
from collections.abc import Iterable

from rich.box import SIMPLE_HEAD
from rich.table import Table
from rich.text import Text

from mixln.placement import Entry
from mixln.placement.parameter_names import block_parameters, outside_parameters
from mixln.placement.plan import StackPlan
from mixln.report.scheme_diagram import describe_stack

_WIDTH = 100


def scheme_table(entries: Iterable[Entry], title: str) -> Table:
    """Return a table with a row for each scheme or modifier."""
    table = Table(title=title, title_justify="left", box=SIMPLE_HEAD)
    table.pad_edge, table.collapse_padding = False, True
    for column, ratio in (("name", None), ("formula", 5), ("source", 3), ("options", 4)):
        table.add_column(column, ratio=ratio, overflow="fold")
    for one in entries:
        formula = f"{one.title}: {one.formula}"
        options = "\n".join(map(str, one.options.values()))
        # Text, not str: rich would read `[0, 1]` as markup
        table.add_row(Text(one.name, style="bold"), Text(formula), Text(one.source), Text(options))
    return table


def term_page(entry: Entry) -> str:
    """Return the page on one scheme or modifier: what it computes, its source, its options."""
    kind = "modifier" if entry.is_modifier else "scheme"
    lines = [f"{entry.name} ({kind}): {entry.title}", "", *_wrap(entry.formula, "    ")]
    for paragraph in entry.text:
        lines += ["", *_wrap(paragraph, "    ")]
    lines += ["", *_wrap(f"source: {entry.source or 'none given'}")]
    options = [f"  {option}" for option in entry.options.values()]
    lines += ["options:", *options] if options else ["options: none"]
    return "\n".join(lines)


def stack_page(label: str, plan: StackPlan) -> str:
    """Return what a placement makes of a stack: each kind of block once, and what is around the blocks.

    Args:
        label: the placement.
        plan: of the stack.
    """
    stack, count = describe_stack(plan), len(plan.blocks)
    lines = [
        f"{label} in a stack of {count} layer{'s' if count > 1 else ''}",
        "",
        f"embedding: {', then '.join(stack.embedding) or 'as it is'}",
    ]
    for kind in stack.kinds:
        names = ", ".join(block_parameters(plan.blocks[kind.layers[0] - 1]))
        lines += ["", f"{kind.title}:", "", textwrap.indent(kind.draw(), "    "), ""]
        lines += _wrap(f"parameters in a Llama block: {names or 'none but the matrices'}")
    lines += ["", f"norm before the head: {stack.final_norm}"]
    lines += _wrap(f"parameters outside the blocks: {', '.join(outside_parameters(plan)) or 'none but the matrices'}")
    lines += [f"init: {rule}" for rule in stack.init]
    return "\n".join(lines)


def _wrap(text: str, indent: str = "") -> list[str]:
    return textwrap.wrap(text, _WIDTH, initial_indent=indent, subsequent_indent=indent or "  ", break_on_hyphens=False)
