"""Phrases that messages, diagrams and reports share."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


def unknown(what: str, name: str, valid: Iterable[str]) -> str:
    """Return the sentence that names an unknown thing, the nearest valid one, and all valid ones."""
    valid = list(valid)
    if not valid:
        return f"unknown {what} {name!r}: it takes none"
    return f"unknown {what} {name!r}.{did_you_mean(name, valid)} Valid: {', '.join(valid)}"


def did_you_mean(name: str, valid: Iterable[str], *, most: int = 1, cutoff: float = 0.5) -> str:
    """Return ` Did you mean 'a' or 'b'?` with the nearest valid names, or nothing where none is near."""
    nearest = difflib.get_close_matches(name.lower(), list(valid), n=most, cutoff=cutoff)
    return f" Did you mean {' or '.join(map(repr, nearest))}?" if nearest else ""


def number_ranges(numbers: Iterable[int]) -> str:
    """Return ascending numbers with consecutive ones joined: `1-3, 5`."""
    runs: list[list[int]] = []
    for number in numbers:
        if runs and number == runs[-1][-1] + 1:
            runs[-1].append(number)
        else:
            runs.append([number])
    return ", ".join(str(run[0]) if len(run) == 1 else f"{run[0]}-{run[-1]}" for run in runs)


def layer_ranges(layers: Iterable[int]) -> str:
    """Return ascending layers in words: `layer 4`, `layers 1-3, 5`."""
    layers = list(layers)
    return f"layer{'s' if len(layers) > 1 else ''} {number_ranges(layers)}"
