"""Tables of the fields of dataclasses, and JSON Schemas of what is written of them, from annotations and docstrings."""

from __future__ import annotations

import dataclasses
import types
from collections import defaultdict
from collections.abc import Iterator
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

from docstring_parser.google import parse
from pydantic import TypeAdapter

from mixln.checked import Range

_WORDS = {int: "whole number", float: "number", str: "text", bool: "true or false"}


def describe(kind: type) -> str:
    """The first paragraphs of a class's docstring, as Markdown."""
    text = parse(kind.__doc__ or "")
    parts = [text.short_description or "", text.long_description or ""]
    return "\n\n".join(" ".join(paragraph.split()) for part in parts for paragraph in part.split("\n\n") if paragraph)


def field_table(kind: type, *, defaults: bool = True, prefix: str = "") -> str:
    """A Markdown table with a row for each field: name, type, default (if asked for) and meaning."""
    helps = defaultdict(str, _helps(kind))
    head = ["field", "type", *(["default"] if defaults else []), "meaning"]
    rows = [
        [f"`{prefix}{field.name}`", _in_words(hint), *([_default(field)] if defaults else []), helps[field.name]]
        for field, hint in _fields(kind)
    ]
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)


def nested(kind: type) -> Iterator[tuple[str, type]]:
    """The fields of a dataclass that are dataclasses themselves, with their classes."""
    for field, hint in _fields(kind):
        if isinstance(hint, type) and dataclasses.is_dataclass(hint):
            yield field.name, hint


def all_parts(kind: type) -> list[type]:
    """A dataclass and all dataclasses that its fields hold, each once, in the order in which they are met."""
    found: list[type] = []

    def visit(hint: Any) -> None:
        if isinstance(hint, type) and dataclasses.is_dataclass(hint) and hint not in found:
            found.append(hint)
            for _, own in _fields(hint):
                visit(own)
        for part in get_args(hint):
            visit(part)

    visit(kind)
    return found


def json_schema(kind: type, title: str, version: int | None) -> dict[str, Any]:
    """The JSON Schema of a dataclass as mixln writes it: a number that is not finite is null.

    Args:
        kind: the dataclass.
        title: of the schema.
        version: the `schema_version` that stands beside the fields; None: there is none.
    """
    schema = _nullable(TypeAdapter(kind).json_schema())
    if version is not None:
        schema["properties"] = {"schema_version": {"const": version}} | schema["properties"]
        schema["required"] = ["schema_version", *schema["required"]]
    return {"$schema": "https://json-schema.org/draft/2020-12/schema"} | schema | {"title": title}


def _nullable(schema: Any) -> Any:
    if isinstance(schema, list):
        return [_nullable(part) for part in schema]
    if not isinstance(schema, dict):
        return schema
    found = {key: _nullable(value) for key, value in schema.items()}
    return found | {"type": ["number", "null"]} if found.get("type") == "number" else found


def _fields(kind: type) -> Iterator[tuple[dataclasses.Field[Any], Any]]:
    hints = get_type_hints(kind, include_extras=True)
    for field in dataclasses.fields(kind):
        yield field, hints[field.name]


def _helps(kind: type) -> dict[str, str]:
    texts = [parse(one.__doc__ or "") for one in reversed(kind.__mro__)]
    return {one.arg_name: _sentence(one.description or "") for text in texts for one in text.params}


def _sentence(text: str) -> str:
    text = " ".join(text.split()).rstrip(".")
    return f"{text}." if text else ""


def _in_words(hint: Any) -> str:
    origin, arguments = get_origin(hint), get_args(hint)
    if origin is Annotated:
        ranges = [_range(one) for one in arguments[1:] if isinstance(one, Range)]
        return " ".join([_in_words(arguments[0]), *ranges])
    if origin in (Union, types.UnionType):
        parts = [_in_words(one) for one in arguments if one is not type(None)]
        return " or ".join(parts) + (", or null" if type(None) in arguments else "")
    if origin is Literal:
        return " or ".join(f"`{one}`" for one in arguments)
    if origin is tuple and Ellipsis not in arguments:
        return f"[{', '.join(_in_words(one) for one in arguments)}]"
    if origin in (list, tuple):
        return f"list of {_in_words(arguments[0])}"
    if origin is dict:
        return f"object with values: {_in_words(arguments[1])}"
    if hint is Any:
        return "anything"
    return _WORDS.get(hint, f"`{getattr(hint, '__name__', hint)}`")


def _range(found: Range) -> str:
    parts = [
        (f"at least {found.low:g}" if found.low is not None else ""),
        (f"above {found.above:g}" if found.above is not None else ""),
        (f"at most {found.high:g}" if found.high is not None else ""),
        (f"below {found.below:g}" if found.below is not None else ""),
    ]
    return " and ".join(part for part in parts if part)


def _default(field: dataclasses.Field[Any]) -> str:
    if field.default_factory is not dataclasses.MISSING:
        value = field.default_factory()
        return "see below" if dataclasses.is_dataclass(value) else f"`{value}`"
    if field.default is dataclasses.MISSING:
        return "none"
    written = {None: "null", True: "true", False: "false"}
    value = field.default
    if value is None or isinstance(value, bool):
        return f"`{written[value]}`"
    return f"`{list(value)}`" if isinstance(value, tuple) else f"`{value}`"
