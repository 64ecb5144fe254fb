"""Which measures there are.

Every module of `mixln.studies.measures` (chosen by its name) and of `mixln.studies.interpretability` (taken on request)
holds an `ENTRY`. It is registered by being there.
"""

from __future__ import annotations

from functools import cache
from importlib import import_module
from pkgutil import iter_modules

from mixln.studies import interpretability, measures
from mixln.studies.measuring import Entry


@cache
def all_entries() -> tuple[Entry, ...]:
    """Every entry, by rank.

    Raises:
        ValueError: an entry has another name than its file, by which it is chosen.
    """
    found: list[Entry] = []
    for package in (measures, interpretability):
        for module in iter_modules(package.__path__):
            entry = import_module(f"{package.__name__}.{module.name}").ENTRY
            if entry.name != module.name:
                raise ValueError(
                    f"the entry of {package.__name__}.{module.name} is named {entry.name!r}: give it its file's name"
                )
            found.append(entry)
    return tuple(sorted(found, key=lambda entry: entry.rank))
