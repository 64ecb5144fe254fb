"""The registry of schemes and modifiers, and the checking of their options.

A scheme is a pure function from (depth l, num_layers L, options) to a `BlockPlan`; a modifier one from (`StackPlan`,
options) to a `StackPlan`. Options are the function's keyword-only parameters: their annotation gives type and range
(`Annotated[float, Interval(0, 1)]`), so that a new scheme has nothing to declare twice.
"""

from __future__ import annotations

import difflib
import inspect
import math
import types
import typing
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeVar

from mixln.placement.plan import NORM, BlockPlan, NormPlan, PlacementError, StackPlan

Option = bool | int | float | str
"""What the value of an option can be in a placement's text form."""

BlockFunction = TypeVar("BlockFunction", bound=Callable[..., BlockPlan])
ModifierFunction = TypeVar("ModifierFunction", bound=Callable[..., StackPlan])


@dataclass(frozen=True)
class Interval:
    """The range of a numeric option, both ends included unless `open_below`."""

    low: float
    high: float = float("inf")
    open_below: bool = False

    def __contains__(self, value: float) -> bool:
        return (self.low < value if self.open_below else self.low <= value) and value <= self.high

    def __str__(self) -> str:
        if self.high == float("inf"):
            return f"more than {self.low:g}" if self.open_below else f"at least {self.low:g}"
        return f"in {'(' if self.open_below else '['}{self.low:g}, {self.high:g}]"


@dataclass(frozen=True)
class OptionSpec:
    """One option of a scheme or modifier: the Python types it takes, for a number its range, the function's default."""

    name: str
    accepted: tuple[type, ...]
    interval: Interval | None
    required: bool = False
    default: Option | None = None

    @property
    def type_name(self) -> str:
        """What a value must be, in words."""
        return " or ".join(_TYPE_NAMES[accepted] for accepted in self.accepted)

    def check(self, value: Option, owner: str) -> Option:
        """Return the value, an int widened to float where a float is meant.

        Raises:
            PlacementError: the value is of another type or outside the range.
        """
        given = f"{owner}: option {self.name}={value!r}"
        if isinstance(value, int) and not isinstance(value, bool) and int not in self.accepted:
            value = float(value) if float in self.accepted else value
        if type(value) not in self.accepted:
            raise PlacementError(f"{given} must be {self.type_name}")
        if isinstance(value, float) and not math.isfinite(value):
            raise PlacementError(f"{given} must be a finite number")
        if self.interval is not None and not isinstance(value, str) and value not in self.interval:
            raise PlacementError(f"{given} must be {self.interval}")
        return value


_TYPE_NAMES = {bool: "true or false", int: "a whole number", float: "a number", str: "a word"}


@dataclass(frozen=True)
class Entry:
    """What the registry knows of a scheme or modifier."""

    name: str
    function: Callable[..., Any]
    options: Mapping[str, OptionSpec]
    default_options: Mapping[str, Option] = field(default_factory=dict)
    embedding_norm: NormPlan | None = None
    final_norm: NormPlan | None = NORM
    head_bias: bool = False

    def check_options(self, given: Mapping[str, Option]) -> dict[str, Option]:
        """Return the options in the order of the function's signature, each checked; the defaults if none is given.

        Raises:
            PlacementError: an option that there is not or that is missing, or a value outside its range.
        """
        for name in given:
            if name not in self.options:
                raise PlacementError(f"{self.name}: {unknown('option', name, self.options)}")
        given = given or self.default_options
        for name, spec in self.options.items():
            if spec.required and name not in given:
                raise PlacementError(f"{self.name}: option {name} must be given")
        return {name: spec.check(given[name], self.name) for name, spec in self.options.items() if name in given}


SCHEMES: dict[str, Entry] = {}
MODIFIERS: dict[str, Entry] = {}


def list_schemes() -> list[str]:
    """Return the names of all registered schemes, in the order of their registration."""
    return list(SCHEMES)


def list_modifiers() -> list[str]:
    """Return the names of all registered modifiers, in the order of their registration."""
    return list(MODIFIERS)


def register_scheme(
    name: str,
    *,
    default_options: Mapping[str, Option] | None = None,
    embedding_norm: NormPlan | None = None,
    final_norm: NormPlan | None = NORM,
    head_bias: bool = False,
) -> Callable[[BlockFunction], BlockFunction]:
    """Register `function(depth, num_layers, *, options...) -> BlockPlan` as a scheme; used as a decorator.

    Args:
        name: lower-case name, as used in a placement's text form.
        default_options: what `name` alone stands for, if that has options: `mix` is `mix(alpha=0.25)`. Once an option
            is given, none of these is filled in; the function's own defaults are.
        embedding_norm: norm on the embedding output, in every stack of this scheme.
        final_norm: norm before the head; None for a scheme without.
        head_bias: whether the head has a bias.

    Raises:
        PlacementError: the name is taken or malformed, or a parameter's annotation is not one that options can have.
    """

    def register(function: BlockFunction) -> BlockFunction:
        options, defaults = _options_of(function), dict(default_options or {})
        entry = Entry(name, function, options, defaults, embedding_norm, final_norm, head_bias)
        _add(entry, SCHEMES)
        return function

    return register


def register_modifier(name: str) -> Callable[[ModifierFunction], ModifierFunction]:
    """Register `function(plan, *, options...) -> StackPlan` as a modifier, joined to a scheme with `+`; a decorator.

    Raises:
        PlacementError: as `register_scheme`.
    """

    def register(function: ModifierFunction) -> ModifierFunction:
        _add(Entry(name, function, _options_of(function)), MODIFIERS)
        return function

    return register


def _add(entry: Entry, registry: dict[str, Entry]) -> None:
    if not (entry.name.isidentifier() and entry.name == entry.name.lower()):
        raise PlacementError(f"{entry.name!r} is no name for a scheme: use lower-case letters, digits and underscores")
    if entry.name in SCHEMES or entry.name in MODIFIERS:
        raise PlacementError(f"{entry.name!r} is already registered; choose another name")
    registry[entry.name] = entry


def _options_of(function: Callable[..., Any]) -> dict[str, OptionSpec]:
    hints = typing.get_type_hints(function, include_extras=True)
    parameters = inspect.signature(function).parameters.values()
    return {p.name: _option(p.name, hints.get(p.name), p.default) for p in parameters if p.kind is p.KEYWORD_ONLY}


def _option(name: str, annotation: Any, default: Any) -> OptionSpec:
    interval: Interval | None = None
    if typing.get_origin(annotation) is typing.Annotated:
        annotation, *details = typing.get_args(annotation)
        interval = next((detail for detail in details if isinstance(detail, Interval)), None)
    is_union = typing.get_origin(annotation) in (typing.Union, types.UnionType)
    members = typing.get_args(annotation) if is_union else (annotation,)
    accepted = tuple(member for member in members if member is not types.NoneType)
    if not set(accepted) <= set(_TYPE_NAMES):
        raise PlacementError(f"option {name}: annotate it with bool, int, float or str, not {annotation}")
    is_required = default is inspect.Parameter.empty
    return OptionSpec(name, accepted, interval, is_required, None if is_required else default)


def unknown(what: str, name: str, valid: Iterable[str]) -> str:
    """Return the sentence that names an unknown thing, the nearest valid one, and all valid ones."""
    valid = list(valid)
    if not valid:
        return f"unknown {what} {name!r}: it takes none"
    nearest = difflib.get_close_matches(name.lower(), valid, n=1, cutoff=0.5)
    hint = f" Did you mean {nearest[0]!r}?" if nearest else ""
    return f"unknown {what} {name!r}.{hint} Valid: {', '.join(valid)}"
