"""What the registry knows of a scheme or modifier, in words: read off its function, so that nothing is said twice."""

from __future__ import annotations

import inspect
import re
from dataclasses import dataclass

from mixln.placement.plan import PlacementError
from mixln.placement.registry import MODIFIERS, SCHEMES, Entry, Option, OptionSpec, unknown

_SECTION = re.compile(r"(Args|Attributes|Examples|Raises|Returns)\b.*:")


@dataclass(frozen=True)
class OptionDescription:
    """One option: its name, what it takes, which values of that, and what holds if it is left out (empty: nothing)."""

    name: str
    type: str
    range: str
    default: str

    def __str__(self) -> str:
        default = self.default and f", default {self.default}"
        return f"{self.name}: {self.type}{self.range and f' {self.range}'}{default}"


@dataclass(frozen=True)
class Description:
    """A scheme or modifier in words.

    Attributes:
        name: as in a placement's text form.
        is_modifier: whether it is joined to a scheme.
        title: what it is called.
        formula: what it does, the rest of the docstring's first paragraph; all of it if there is no title in it.
        source: what stands in parentheses at the end of that; empty: nothing.
        text: the docstring's other paragraphs, without its sections on arguments and errors.
        options: in the order of the function's signature.
    """

    name: str
    is_modifier: bool
    title: str
    formula: str
    source: str
    text: tuple[str, ...]
    options: tuple[OptionDescription, ...]


def describe_schemes() -> list[Description]:
    """Return the descriptions of all registered schemes, in the order of their registration."""
    return [_describe(entry, is_modifier=False) for entry in SCHEMES.values()]


def describe_modifiers() -> list[Description]:
    """Return the descriptions of all registered modifiers, in the order of their registration."""
    return [_describe(entry, is_modifier=True) for entry in MODIFIERS.values()]


def describe(name: str) -> Description:
    """Return the description of one scheme or modifier.

    Raises:
        PlacementError: there is none of this name.
    """
    if name not in SCHEMES and name not in MODIFIERS:
        raise PlacementError(unknown("scheme or modifier", name, [*SCHEMES, *MODIFIERS]))
    return _describe((SCHEMES | MODIFIERS)[name], is_modifier=name in MODIFIERS)


def _describe(entry: Entry, *, is_modifier: bool) -> Description:
    paragraphs = [" ".join(part.split()) for part in (inspect.getdoc(entry.function) or "").split("\n\n")]
    first, *others = paragraphs
    text = [part for part in others if not _SECTION.match(part)]
    first, source = _split_source(first.removesuffix("."))
    title, colon, formula = first.partition(": ")
    return Description(
        name=entry.name,
        is_modifier=is_modifier,
        title=title if colon else entry.name,
        formula=formula if colon else first,
        source=source,
        text=tuple(text),
        options=tuple(_describe_option(option, entry) for option in entry.options.values()),
    )


def _split_source(text: str) -> tuple[str, str]:
    """Return a text without the parentheses at its end, and what is in them. `F(x)` at the end is none: no blank."""
    opened = text.rfind(" (")
    if opened < 0 or not text.endswith(")") or _closes_before_end(text[opened + 1 :]):
        return text, ""
    return text[:opened], text[opened + 2 : -1]


def _closes_before_end(text: str) -> bool:
    depth = 0
    for position, character in enumerate(text):
        depth += (character == "(") - (character == ")")
        if depth == 0:
            return position < len(text) - 1
    return True


def _describe_option(option: OptionSpec, entry: Entry) -> OptionDescription:
    default = entry.default_options.get(option.name, option.default)
    return OptionDescription(
        name=option.name,
        type=option.type_name,
        range="" if option.interval is None else str(option.interval),
        default="must be given" if option.required and not entry.default_options else _print_default(default),
    )


def _print_default(value: Option | None) -> str:
    if value is None:
        return ""
    return str(value).lower() if isinstance(value, bool) else f"{value:g}" if isinstance(value, float) else str(value)
