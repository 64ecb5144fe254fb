"""Results to strict JSON and back.

Floats survive exactly (`repr` round-trips in Python's `json`). NaN and infinities are no JSON: they are written as
`null`. A `null` where the dataclass asks for a `float | None` comes back as None; where it asks for a plain `float`
(a point of a loss curve after divergence) it comes back as NaN. So a diverged run can always be stored.
"""

from __future__ import annotations

import dataclasses
import json
import math
import types
from collections.abc import Mapping
from functools import cache
from typing import Any, Literal, TypeVar, Union, cast, get_args, get_origin, get_type_hints, overload

from mixln.errors import InputError
from mixln.report.diagnosis import DIAGNOSIS_SCHEMA_VERSION, DepthReport
from mixln.report.results import SCHEMA_VERSION, ComparisonResult, RunResult

Result = TypeVar("Result", ComparisonResult, RunResult, DepthReport)

_VERSIONS: dict[type, int] = {
    ComparisonResult: SCHEMA_VERSION,
    RunResult: SCHEMA_VERSION,
    DepthReport: DIAGNOSIS_SCHEMA_VERSION,
}

_VERSION_KEY = "schema_version"


def to_json(result: ComparisonResult | RunResult | DepthReport) -> str:
    """Strict JSON text of a comparison, of one run or of a diagnosis, with its schema version.

    Tuples become lists, and non-finite floats `null`. `config` may hold only what JSON knows (numbers, strings,
    booleans, None, lists, string-keyed dicts); anything else is a TypeError that names the place.
    """
    document = {_VERSION_KEY: _VERSIONS[type(result)], **_encode(result, type(result).__name__)}
    return json.dumps(document, allow_nan=False, ensure_ascii=False, indent=1) + "\n"


@overload
def from_json(text: str) -> ComparisonResult: ...
@overload
def from_json(text: str, kind: type[Result]) -> Result: ...
def from_json(text: str, kind: type[Any] = ComparisonResult) -> Any:
    """The comparison (or, with `kind`, the run or the diagnosis) that `to_json` wrote.

    Raises:
        InputError: the text is no JSON, has another schema version, or lacks or misspells a field; the message names
            the place, as in `runs[3].seed`.
    """
    try:
        document = json.loads(text)
    except json.JSONDecodeError as error:
        raise InputError(f"Not a results file: no valid JSON at line {error.lineno} ({error.msg}).") from error
    if not isinstance(document, dict) or _VERSION_KEY not in document:
        raise InputError(f"Not a results file: it has no {_VERSION_KEY!r}. Give a results.json that mixln wrote.")
    version = document[_VERSION_KEY]
    if version != _VERSIONS[kind]:
        raise InputError(
            f"Results have {_VERSION_KEY} {version!r}, and this version of mixln reads {_VERSIONS[kind]}. "
            "Read them with the version of mixln that wrote them, or make them again."
        )
    fields = {field.name for field in dataclasses.fields(kind)}
    if _VERSION_KEY not in fields:
        document = {key: value for key, value in document.items() if key != _VERSION_KEY}
    return _decode(kind, document, "")


def _encode(value: object, path: str) -> Any:
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {f.name: _encode(getattr(value, f.name), f"{path}.{f.name}") for f in dataclasses.fields(value)}
    if value is None or isinstance(value, bool | int | str):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, list | tuple):
        return [_encode(item, f"{path}[{index}]") for index, item in enumerate(value)]
    if isinstance(value, Mapping):
        for key in value:
            if not isinstance(key, str):
                raise TypeError(f"{path} has the key {key!r}: JSON keys are strings")
        return {key: _encode(item, f"{path}.{key}") for key, item in value.items()}
    raise TypeError(f"{path} is a {type(value).__name__}, which JSON does not know: convert it before storing")


Kind = TypeVar("Kind")


def decode(kind: type[Kind], document: object) -> Kind:
    """A dataclass from what JSON gave, every field of the type that it is annotated with.

    Raises:
        InputError: a field is missing, unknown or of another type.
    """
    return _decode(kind, document, "")


@cache
def _hints(kind: type) -> dict[str, Any]:
    return get_type_hints(kind)


def _decode(kind: Any, value: Any, path: str) -> Any:
    """`value` as the annotated type `kind`; `path` says where it stands, for messages."""
    if kind is Any:
        return value
    if dataclasses.is_dataclass(kind):
        return _decode_dataclass(cast(type, kind), value, path)
    origin, arguments = get_origin(kind), get_args(kind)
    if origin in (types.UnionType, Union):
        if value is None and type(None) in arguments:
            return None
        (inner,) = [argument for argument in arguments if argument is not type(None)]
        return _decode(inner, value, path)
    if origin is Literal and value in arguments:
        return value
    if origin is list and isinstance(value, list):
        return [_decode(arguments[0], item, f"{path}[{index}]") for index, item in enumerate(value)]
    if origin is tuple and isinstance(value, list) and len(value) == len(arguments):
        return tuple(
            _decode(argument, item, f"{path}[{index}]")
            for index, (argument, item) in enumerate(zip(arguments, value, strict=True))
        )
    if origin is dict and isinstance(value, dict):
        return {key: _decode(arguments[1], item, f"{path}.{key}") for key, item in value.items()}
    if kind is float and value is None:
        return math.nan
    if kind is float and isinstance(value, int | float) and not isinstance(value, bool):
        return float(value)
    # bool is a subclass of int, so compare types rather than ask isinstance.
    if type(value) is kind:
        return value
    expected = kind.__name__ if isinstance(kind, type) and origin is None else str(kind)
    raise InputError(f"Results cannot be read: {path} should be {expected}, and is {type(value).__name__}.")


def _decode_dataclass(kind: type, value: Any, path: str) -> Any:
    where = path or "the document"
    if not isinstance(value, dict):
        raise InputError(f"Results cannot be read: {where} should be an object, and is {type(value).__name__}.")
    fields = dataclasses.fields(kind)
    unknown = sorted(value.keys() - {field.name for field in fields})
    required = {
        field.name
        for field in fields
        if field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING
    }
    missing = sorted(required - value.keys())
    if unknown or missing:
        problems = [f"lacks {', '.join(missing)}"] if missing else []
        problems += [f"has the unknown {', '.join(unknown)}"] if unknown else []
        raise InputError(f"Results cannot be read: {where} {' and '.join(problems)} (as a {kind.__name__}).")
    hints = _hints(kind)
    prefix = f"{path}." if path else ""
    return kind(**{key: _decode(hints[key], item, prefix + key) for key, item in value.items()})
