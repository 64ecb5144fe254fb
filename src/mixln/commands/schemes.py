"""`mixln schemes`."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from mixln.errors import InputError

if TYPE_CHECKING:
    from mixln.placement import Placement

_MOST_LAYERS = 1000


def schemes(
    placement: str | None = None,
    *,
    num_layers: int = 12,
    figures: Annotated[Path | None, {"metavar": "FOLDER"}] = None,
) -> None:
    """List every scheme and modifier; or show one of them, or any placement: formula, source, options, the names of its
    parameters, and a diagram of its blocks.

    Example:
        mixln schemes 'mix(alpha=0.5)+gpas' --num-layers 24

    Args:
        placement: A scheme, modifier or placement. Default: list what there is.
        num_layers: The number of layers of the stack that is shown.
        figures: Draw every scheme and modifier into this folder, as SVG.
    """
    if not 1 <= num_layers <= _MOST_LAYERS:
        raise InputError(f"`num_layers` must be in [1, {_MOST_LAYERS}], not {num_layers}")
    if figures is None:
        _list() if placement is None else _show(placement, num_layers)
    elif placement is None:
        _draw(figures, num_layers)
    else:
        raise InputError("`figures` draws every scheme and modifier: leave out the placement")


def _list() -> None:
    from rich.console import Console

    from mixln.placement.registry import MODIFIERS, SCHEMES
    from mixln.report.scheme_pages import scheme_table

    console = Console(width=None if sys.stdout.isatty() else 120)
    console.print(scheme_table(SCHEMES.values(), "Schemes"))
    console.print(scheme_table(MODIFIERS.values(), "Modifiers, joined to a scheme with +"))
    console.print("One of them, or any placement: mixln schemes 'mix(alpha=0.5)+gpas'", highlight=False)


def _show(text: str, num_layers: int) -> None:
    from mixln.placement import find_entry, list_modifiers
    from mixln.report.scheme_pages import stack_page, term_page

    placement = _placement(text)
    plan = placement.plan(num_layers)
    shown = [find_entry(term.name) for term in (placement.scheme, *placement.modifiers)]
    if text.strip().partition("(")[0] in list_modifiers():
        shown = shown[1:]  # `pre`, which nobody asked for
    pages = [*map(term_page, shown), stack_page(str(placement), plan)]
    print("\n\n".join(pages))


def _placement(text: str) -> Placement:
    """Return the placement that is meant; a modifier alone is shown on `pre`."""
    from mixln.placement import Placement, find_entry, list_modifiers, list_schemes

    text = text.strip()
    first = re.match(r"\w*", text)
    name = first[0] if first else ""
    if name == text and name not in list_schemes():
        find_entry(name)  # whose error knows modifiers as well
    return Placement.parse(f"pre+{text}" if name in list_modifiers() else text)


def _draw(folder: Path, num_layers: int) -> None:
    """Draw every scheme, and every modifier on `pre`."""
    from mixln.placement import Placement, list_modifiers, list_schemes
    from mixln.report.placement_figures import write_placement_figure
    from mixln.report.scheme_diagram import describe_stack
    from mixln.storage import claim_folder

    claim_folder(folder)
    labels = {name: name for name in list_schemes()} | {name: f"pre+{name}" for name in list_modifiers()}
    for name, label in labels.items():
        write_placement_figure(folder / f"{name}.svg", label, describe_stack(Placement.parse(label).plan(num_layers)))
    print(f"{folder}: {len(labels)} pictures")
