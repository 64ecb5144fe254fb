"""Names of one's own for the schemes of a comparison."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields, is_dataclass, replace
from typing import Any, TypeVar

from mixln.report.results import ComparisonResult

Result = TypeVar("Result", bound=ComparisonResult)

_LABELS = {"placement", "baseline"}
"""Fields that hold a scheme, in every part of a comparison."""


def with_shown_names(result: Result) -> Result:
    """The comparison as it is shown: `names` stand for text forms, and a fact says which is which.

    In sentences, schemes stand in backticks.
    """
    if not result.names:
        return result
    schemes = "; ".join(f"{name}: {placement}" for placement, name in result.names.items())
    named = _named(replace(result, names={}), result.names)
    return replace(named, facts={"Schemes": schemes} | result.facts)


def _named(part: Any, names: Mapping[str, str]) -> Any:
    """A part of a comparison with other labels; what has none stays the same object."""
    if isinstance(part, str):
        for placement, name in names.items():
            part = part.replace(f"`{placement}`", f"`{name}`")
        return part
    if isinstance(part, list):
        return [_named(one, names) for one in part]
    if not is_dataclass(part) or isinstance(part, type):
        return part
    found = {field.name: getattr(part, field.name) for field in fields(part)}
    changed = {
        name: names.get(str(value), value) if name in _LABELS else _named(value, names)
        for name, value in found.items()
        if name in _LABELS or isinstance(value, str | list) or is_dataclass(value)
    }
    return replace(part, **changed) if any(changed[name] != found[name] for name in changed) else part
