"""The registry of schemes and modifiers, and the checking of their options.

A scheme is a pure function from (depth l, num_layers L, options) to a `BlockPlan`; a modifier is one from (`StackPlan`,
options) to a `StackPlan`. The options are the function's keyword-only parameters. Their annotation gives type and range
(`Annotated[float, Interval(0, 1)]`), so nothing is declared twice.
"""

from __future__ import annotations

import inspect
import math
import re
import types
import typing
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar

from mixln.placement.plan import NORM, BlockPlan, NormPlan, PlacementError, StackPlan
from mixln.placement.words import unknown

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
    """One option of a scheme or modifier.

    Attributes:
        name: as in a placement's text form.
        accepted: the Python types of its values.
        interval: the range of a number.
        required: whether the function has no default for it.
        default: what holds if it is left out; None: nothing.
    """

    name: str
    accepted: tuple[type, ...]
    interval: Interval | None
    required: bool = False
    default: Option | None = None

    @property
    def type_name(self) -> str:
        """What a value must be, in words."""
        return " or ".join(_TYPE_NAMES[accepted] for accepted in self.accepted)

    def __str__(self) -> str:
        values = self.type_name if self.interval is None else f"{self.type_name} {self.interval}"
        if self.default is None:
            return f"{self.name}: {values}{', must be given' if self.required else ''}"
        number = isinstance(self.default, float)
        return f"{self.name}: {values}, default {f'{self.default:g}' if number else str(self.default).lower()}"

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
    """What the registry knows of a scheme or modifier.

    Attributes:
        name: as in a placement's text form.
        function: the scheme or modifier itself.
        options: by name, in the order of the function's signature.
        is_modifier: whether it is joined to a scheme.
        title: what it is called.
        formula: what it computes.
        source: the publication; empty: none was given.
        text: the paragraphs of the docstring, without its sections on arguments and errors.
        default_options, embedding_norm, final_norm, head_bias: as in `register_scheme`.
    """

    name: str
    function: Callable[..., Any]
    options: Mapping[str, OptionSpec]
    is_modifier: bool
    title: str
    formula: str
    source: str
    text: tuple[str, ...]
    default_options: Mapping[str, Option] = field(default_factory=dict)
    embedding_norm: NormPlan | None = None
    final_norm: NormPlan | None = NORM
    head_bias: bool = False

    def check_options(self, given: Mapping[str, Option]) -> dict[str, Option]:
        """Return the options in the order of the function's signature, each checked; the defaults if none is given.

        Raises:
            PlacementError: an unknown or missing option, or a value outside its range.
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


def find_entry(name: str) -> Entry:
    """Return the scheme or modifier of a name.

    Raises:
        PlacementError: there is none of this name.
    """
    entries = SCHEMES | MODIFIERS
    if name not in entries:
        raise PlacementError(unknown("scheme or modifier", name, entries))
    return entries[name]


def register_scheme(
    name: str,
    *,
    title: str = "",
    formula: str = "",
    source: str = "",
    default_options: Mapping[str, Option] | None = None,
    embedding_norm: NormPlan | None = None,
    final_norm: NormPlan | None = NORM,
    head_bias: bool = False,
) -> Callable[[BlockFunction], BlockFunction]:
    """Register `function(depth, num_layers, *, options...) -> BlockPlan` as a scheme; used as a decorator.

    Title, formula and source are put before the function's docstring, which says the rest.

    Args:
        name: lower-case name, as used in a placement's text form.
        title: what it is called; the name if there is none.
        formula: what it computes; the first paragraph of the docstring if there is none.
        source: the publication.
        default_options: what `name` alone stands for, if that has options: `mix` is `mix(alpha=0.25)`. Once an option
            is given, none of these is filled in; the function's own defaults are.
        embedding_norm: norm on the embedding output, in every stack of this scheme.
        final_norm: norm before the head; None for a scheme without.
        head_bias: whether the head has a bias.

    Returns:
        The decorator, which returns the function as it is.

    Raises:
        PlacementError: the name is taken or malformed, or a parameter's annotation is not one that options can have.
    """

    def register(function: BlockFunction) -> BlockFunction:
        SCHEMES[name] = _entry(
            name,
            function,
            title=title,
            formula=formula,
            source=source,
            is_modifier=False,
            default_options=default_options or {},
            embedding_norm=embedding_norm,
            final_norm=final_norm,
            head_bias=head_bias,
        )
        return function

    return register


def register_modifier(
    name: str, *, title: str = "", formula: str = "", source: str = ""
) -> Callable[[ModifierFunction], ModifierFunction]:
    """Register `function(plan, *, options...) -> StackPlan` as a modifier, joined to a scheme with `+`; a decorator.

    Args:
        name: lower-case name, as used in a placement's text form.
        title: what it is called; the name if there is none.
        formula: what it computes; the first paragraph of the docstring if there is none.
        source: the publication.

    Returns:
        The decorator, which returns the function as it is.

    Raises:
        PlacementError: as `register_scheme`.
    """

    def register(function: ModifierFunction) -> ModifierFunction:
        MODIFIERS[name] = _entry(name, function, title=title, formula=formula, source=source, is_modifier=True)
        return function

    return register


_SECTION = re.compile(r"(Args|Attributes|Examples|Raises|Returns)\b.*:")


def _entry(name: str, function: Callable[..., Any], *, title: str, formula: str, source: str, **others: Any) -> Entry:
    if not (name.isidentifier() and name == name.lower()):
        raise PlacementError(f"{name!r} is no name for a scheme: use lower-case letters, digits and underscores")
    if name in SCHEMES or name in MODIFIERS:
        raise PlacementError(f"{name!r} is already registered; choose another name")
    defaults = others.get("default_options", {})
    options = {
        option.name: replace(option, default=defaults.get(option.name, option.default))
        for option in _options_of(function)
    }
    written = inspect.getdoc(function) or ""
    paragraphs = [" ".join(part.split()) for part in written.split("\n\n") if part.strip()]
    text = [part for part in paragraphs if not _SECTION.match(part)]
    if formula:
        cited = f" ({source})" if source else ""
        function.__doc__ = f"{title or name}: {formula}{cited}.\n\n{written}".rstrip()
    elif text:
        formula = text.pop(0).removesuffix(".")
    return Entry(
        name, function, options, title=title or name, formula=formula, source=source, text=tuple(text), **others
    )


def _options_of(function: Callable[..., Any]) -> list[OptionSpec]:
    hints = typing.get_type_hints(function, include_extras=True)
    parameters = inspect.signature(function).parameters.values()
    return [_option(p.name, hints.get(p.name), p.default) for p in parameters if p.kind is p.KEYWORD_ONLY]


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
