"""`mixln schemes`."""

from __future__ import annotations

import re
import sys
from pathlib import Path

from jsonargparse import ArgumentParser, Namespace
from rich.console import Console

from mixln.commands.arguments import Command, command_parser
from mixln.errors import InputError
from mixln.files import claim_folder
from mixln.models.parameter_names import list_placement_parameters
from mixln.placement import (
    Placement,
    describe,
    describe_modifiers,
    describe_schemes,
    describe_stack,
    list_modifiers,
    list_schemes,
)
from mixln.report.placement_figures import write_placement_figure
from mixln.report.scheme_pages import scheme_table, stack_page, term_page

_MOST_LAYERS = 1000


def build_parser() -> ArgumentParser:
    """Return the parser of `mixln schemes`."""
    parser = command_parser(
        "List every scheme and modifier; or show one of them, or any placement: formula, source, options, the names of "
        "its parameters, and a diagram of its blocks.",
        "mixln schemes 'mix(alpha=0.5)+gpas' --layers 24",
    )
    parser.add_argument(
        "placement", type=str, nargs="?", default=None, help="scheme, modifier or placement; none: list what there is"
    )
    parser.add_argument("--layers", type=int, default=12, help="layers of the stack that is shown; default: 12")
    parser.add_argument(
        "--figures", type=str, default=None, metavar="FOLDER", help="draw every scheme and modifier there, as SVG"
    )
    return parser


def run(given: Namespace, _command: str) -> int:
    """Run `mixln schemes`."""
    if not 1 <= given.layers <= _MOST_LAYERS:
        raise InputError(f"--layers must be in [1, {_MOST_LAYERS}], not {given.layers}")
    if given.figures is not None:
        if given.placement is not None:
            raise InputError("--figures draws every scheme and modifier: leave out the placement")
        folder = Path(given.figures)
        claim_folder(folder)
        _draw(folder, given.layers)
        return 0
    if given.placement is None:
        console = Console(width=None if sys.stdout.isatty() else 120)
        console.print(scheme_table(describe_schemes(), "Schemes"))
        console.print(scheme_table(describe_modifiers(), "Modifiers, joined to a scheme with +"))
        console.print("One of them, or any placement: mixln schemes 'mix(alpha=0.5)+gpas'", highlight=False)
        return 0
    placement = _placement(given.placement)
    stack = describe_stack(placement.plan(given.layers))
    names = list_placement_parameters(str(placement), given.layers)
    shown = [describe(term.name) for term in (placement.scheme, *placement.modifiers)]
    if given.placement.strip().partition("(")[0] in list_modifiers():
        shown = shown[1:]  # `pre`, which nobody asked for
    pages = [*map(term_page, shown), stack_page(str(placement), stack, names.blocks, names.outside)]
    print("\n\n".join(pages))
    return 0


def _placement(text: str) -> Placement:
    """Return the placement that is meant; a modifier alone is shown on `pre`."""
    text = text.strip()
    first = re.match(r"\w*", text)
    name = first[0] if first else ""
    if name == text and name not in list_schemes():
        describe(name)  # whose error knows modifiers as well
    return Placement.parse(f"pre+{text}" if name in list_modifiers() else text)


def _draw(folder: Path, num_layers: int) -> None:
    """Draw every scheme, and every modifier on `pre`."""
    labels = {name: name for name in list_schemes()} | {name: f"pre+{name}" for name in list_modifiers()}
    for name, label in labels.items():
        write_placement_figure(folder / f"{name}.svg", label, describe_stack(Placement.parse(label).plan(num_layers)))
    print(f"{folder}: {len(labels)} pictures")


COMMAND = Command("schemes", "list the schemes and modifiers, or show one", build_parser, run)
