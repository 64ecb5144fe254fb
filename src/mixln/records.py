"""Dataclasses and records to strict JSON and back; whatever a file holds, the reader gets a value or one message.

Python's own reader raises errors of three kinds and returns numbers of any length, which overflow later, where they are
used. What is read here fits 64 bits, and a record has the fields of its schema, in their types. Floats survive exactly.
"""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from mixln.checked import Conversion
from mixln.errors import InputError

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

Kind = TypeVar("Kind")

_LARGEST = 2**63 - 1

_DEEPEST = 64
"""Far deeper than any record of ours, and far below Python's limit on recursion."""


def read_json(path: Path) -> Any:
    """Return what a JSON file holds.

    Raises:
        InputError: it is not JSON in UTF-8, is nested too deeply, or has a whole number of more than 64 bits.
        OSError: the file does not exist or cannot be read.
    """
    return parse_json(path.read_bytes(), str(path))


def parse_json(text: str | bytes, where: str) -> Any:
    """Return what a JSON text holds.

    Args:
        text: the text; bytes are UTF-8.
        where: what it is called in messages.

    Raises:
        InputError: as `read_json`.
    """
    too_deep = InputError(f"{where} cannot be read: its JSON is nested too deeply")
    try:
        found = json.loads(text.decode() if isinstance(text, bytes) else text, parse_int=_whole_number)
    except RecursionError as error:
        raise too_deep from error
    except json.JSONDecodeError as error:
        raise InputError(f"{where} cannot be read: no valid JSON in line {error.lineno} ({error.msg})") from error
    except UnicodeDecodeError as error:
        raise InputError(f"{where} cannot be read: it is not UTF-8") from error
    except ValueError as error:
        raise InputError(f"{where} cannot be read: {error}") from error
    if isinstance(found, dict | list) and _is_deep(found, _DEEPEST):
        raise too_deep
    return found


def encode(value: object, where: str) -> Any:
    """Return a dataclass as what strict JSON can hold: tuples as lists, floats that are not finite as None.

    Args:
        value: a dataclass, or what stands in one: numbers, strings, booleans, None, lists, tuples, string-keyed dicts.
        where: what it is called in messages.

    Raises:
        TypeError: there is something else in it; names the place, as in `RunResult.config.path`.
    """
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        value = {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}
    if value is None or isinstance(value, bool | int | str):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, list | tuple):
        return [encode(item, f"{where}[{index}]") for index, item in enumerate(value)]
    if isinstance(value, Mapping):
        for key in value:
            if not isinstance(key, str):
                raise TypeError(f"{where} has the key {key!r}: JSON keys are strings")
        return {key: encode(item, f"{where}.{key}") for key, item in value.items()}
    raise TypeError(f"{where} is a {type(value).__name__}, which JSON does not know: convert it before storing")


def decode(kind: type[Kind], value: object, where: str, *, null_is_nan: bool = False) -> Kind:
    """Return what JSON gave as a dataclass or TypedDict, every field of the type that it is annotated with.

    Args:
        kind: the dataclass or TypedDict, with fields of the types that `mixln.checked.Conversion` knows.
        value: what was read.
        where: what it is called in messages.
        null_is_nan: whether a null is NaN where a plain `float` is wanted, as `encode` writes it.

    Raises:
        InputError: a field is missing, unknown, of another type, or out of its range; the message names the place, as
            in `runs[3].seed`.
    """
    return Conversion(where, is_json=True, null_is_nan=null_is_nan).convert(kind, value, "")


def to_text(record: DataclassInstance) -> str:
    """Return JSON for people to read."""
    return json.dumps(encode(record, type(record).__name__), indent=1, allow_nan=False) + "\n"


def check_record(schema: type, found: object, where: str) -> dict[str, Any]:
    """Return what was read from JSON as a dict, with the fields and types of a TypedDict; see `decode`."""
    return decode(schema, found, where)


def _whole_number(digits: str) -> int:
    # Python reads 4300 digits, and then refuses; floats, tensors and seeds end long before
    if len(digits) > 20 or abs(number := int(digits)) > _LARGEST:
        raise ValueError(f"a whole number in it has more than 64 bits ({digits[:12]}...)")
    return number


def _is_deep(value: dict[str, Any] | list[Any], levels: int) -> bool:
    inside = value.values() if isinstance(value, dict) else value
    return levels == 0 or any(isinstance(one, dict | list) and _is_deep(one, levels - 1) for one in inside)
