"""Types and ranges, checked by annotations: of fields of configurations, of what was read from JSON, of arguments.

A configuration is valid when it exists, since its constructor checks it:

    @dataclass(frozen=True)
    class OptimizerConfig(Checked):
        checked_path: ClassVar[str] = "optimizer."
        learning_rate: PositiveFloat = 1e-3

A public function checks its arguments likewise (`mixln.signatures`).

A range is part of the field's annotation. Rules between fields stand in the own `__post_init__` of a class, which calls
this one first. This module imports nothing heavy, so that the modules of configurations do not either.
"""

from __future__ import annotations

import difflib
import math
import os
import reprlib
import types
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import MISSING, dataclass, fields, is_dataclass
from functools import cache
from pathlib import Path
from typing import (
    Annotated,
    Any,
    ClassVar,
    Literal,
    NotRequired,
    Required,
    Union,
    get_args,
    get_origin,
    get_type_hints,
    is_typeddict,
)

from mixln.errors import InputError
from mixln.written import is_null, written_bool, written_float, written_int, written_items


@dataclass(frozen=True)
class Range:
    """The range of a number.

    Attributes:
        low: the least value, which is in the range.
        high: the greatest value, in the range too.
        above: the number must be more than this.
        below: the number must be less than this.
    """

    low: float | None = None
    high: float | None = None
    above: float | None = None
    below: float | None = None

    def __contains__(self, value: float) -> bool:
        """Whether a number lies in the range; NaN lies in none, and infinity in none that is open below."""
        return (
            (self.low is None or value >= self.low)
            and (self.high is None or value <= self.high)
            and (self.above is None or (value > self.above and value != math.inf))
            and (self.below is None or value < self.below)
        )

    def refuse(self, value: float) -> str:
        """Return what to say of a number outside of the range."""
        if not math.isfinite(value):
            return f"must be a finite number, not {value}"
        least = self.low if self.above is None else self.above
        most = self.high if self.below is None else self.below
        if most is not None and most != math.inf:
            brackets = "[" if self.above is None else "(", "]" if self.below is None else ")"
            return f"must be in {brackets[0]}{least:g}, {most:g}{brackets[1]}, not {value}"
        if self.above is not None:
            return f"must be more than {self.above:g}, not {value}"
        return f"must not be negative, but is {value}" if least == 0 else f"must be at least {least:g}, not {value}"


PositiveInt = Annotated[int, Range(above=0)]
NonNegativeInt = Annotated[int, Range(low=0)]
PositiveFloat = Annotated[float, Range(above=0)]
NonNegativeFloat = Annotated[float, Range(low=0, below=math.inf)]
Fraction = Annotated[float, Range(low=0, below=1)]

_IN_WORDS: dict[Any, str] = {
    int: "a whole number",
    float: "a number",
    str: "text",
    bool: "true or false",
    dict: "an object",
    Path: "a path",
    Mapping: "a mapping",
    Callable: "a function",
}


@dataclass(frozen=True)
class Checked:
    """Base class of dataclasses whose fields are checked by their annotations. It is one too: so jsonargparse gives an
    option to each field of a nested one, and takes no subclass in its place.

    Annotations are those that `Conversion` knows.

    Attributes:
        checked_path: what stands before a field's name in messages: where users find it, as `optimizer.`.
    """

    checked_path: ClassVar[str] = ""

    def __post_init__(self) -> None:
        """Raise InputError if a field has a value of another type or out of its range; the message names the field.

        A path where text is wanted becomes text, and a list where a tuple is wanted a tuple.
        """
        for name, hint in _fields(type(self))[0].items():
            value = Conversion().convert(hint, getattr(self, name), f"{self.checked_path}{name}")
            object.__setattr__(self, name, value)  # which a frozen dataclass allows in no other way


@dataclass(frozen=True)
class Conversion:
    """Values checked against annotations, and objects of JSON made into the dataclasses that they stand for.

    Known are `Any`, classes, `Literal`, lists, sequences, iterables, tuples, string-keyed dicts, dataclasses,
    TypedDicts, unions of these, and `Range` in `Annotated`. A bool is no number; an int is a float too; text is no
    list.

    Attributes:
        where: what the whole is called in messages; empty: its parts alone are named.
        is_json: whether objects stand for dataclasses, and ints for floats; else paths become text where text alone is
            wanted, and lists tuples where tuples are.
        null_is_nan: whether a null is NaN where a plain `float` is wanted.
        is_written: whether people have written the values, on the command line or in YAML (`mixln.written`): a text can
            then stand for a number, a truth value, a list or None. Goes with `is_json`.
    """

    where: str = ""
    is_json: bool = False
    null_is_nan: bool = False
    is_written: bool = False

    def convert(self, kind: Any, value: Any, path: str) -> Any:
        """Return the value as one of `kind`; `path` is its place.

        Raises:
            InputError: it is of another type, or out of its range; names the place, as in `runs[3].seed`.
        """
        origin, arguments = get_origin(kind), get_args(kind)
        if origin in (Annotated, Required, NotRequired):
            found = self.convert(arguments[0], value, path)
            for limit in arguments[1:]:
                if isinstance(limit, Range) and found not in limit:
                    raise self._refusal(path, limit.refuse(found))
            return found
        if origin in (Union, types.UnionType):
            is_none = value is None or (self.is_written and isinstance(value, str) and is_null(value))
            if is_none and types.NoneType in arguments:
                return None
            kinds = [argument for argument in arguments if argument is not types.NoneType]
            return self.convert(kinds[0], value, path) if len(kinds) == 1 else self._convert_any_of(kinds, value, path)
        if self.is_written:
            value = _read(origin or kind, value)
        if origin is Literal:
            if value not in arguments:
                near = difflib.get_close_matches(str(value), list(map(str, arguments)), n=1)
                meant = f". Did you mean {near[0]!r}?" if near else ""
                raise self._wrong(path, f"one of {', '.join(map(str, arguments))}", value, meant)
            return value
        if origin in (list, tuple, Sequence):
            return self._convert_items(origin, arguments, value, path)
        if origin is Iterable:  # which may be read once alone
            if isinstance(value, str | bytes | os.PathLike | Mapping) or not isinstance(value, origin):
                raise self._wrong(path, "a list", value)
            return value
        if origin is dict and isinstance(value, dict):
            return {key: self.convert(arguments[1], item, f"{path}.{key}") for key, item in value.items()}
        if self.is_json and (is_dataclass(kind) or is_typeddict(kind)):
            return self._convert_fields(kind, value, path)
        if kind is float and value is None and self.null_is_nan:
            return math.nan
        wanted = (int, float) if kind is float else object if kind is Any else origin or kind
        if kind is str and isinstance(value, os.PathLike) and not self.is_json:
            return os.fspath(value)
        if not isinstance(value, wanted) or (kind in (int, float) and isinstance(value, bool)):
            raise self._wrong(path, _in_words(kind), value)
        if not (isinstance(value, int) and kind is float and self.is_json):
            return value
        try:
            return float(value)
        except OverflowError:
            raise self._wrong(path, "a number that fits into 64 bits", value) from None

    def _convert_any_of(self, kinds: Sequence[Any], value: Any, path: str) -> Any:
        for kind in sorted(kinds, key=lambda kind: kind is Any):
            # of a list, what is wrong with its items is to be said
            if _is_of(kind, value):
                return self.convert(kind, value, path) if get_origin(kind) is not None else value
        raise self._wrong(path, " or ".join(dict.fromkeys(map(_in_words, kinds))), value)

    def _convert_items(self, origin: Any, arguments: tuple[Any, ...], value: Any, path: str) -> Any:
        if isinstance(value, str | bytes) or not isinstance(value, Sequence):
            raise self._wrong(path, "a list", value)
        is_fixed = origin is tuple and arguments[-1] is not Ellipsis
        kinds = arguments if is_fixed else arguments[:1] * len(value)
        if len(kinds) != len(value):
            raise self._wrong(path, f"a list of {len(kinds)}", value)
        pairs = enumerate(zip(kinds, value, strict=True))
        items = [self.convert(kind, item, f"{path}[{index}]") for index, (kind, item) in pairs]
        return tuple(items) if origin is tuple else items

    def _convert_fields(self, kind: Any, value: Any, path: str) -> Any:
        if not isinstance(value, dict):
            raise self._wrong(path, "an object", value)
        hints, required = _fields(kind)
        if missing := required - value.keys():
            raise self._refusal(path, f"lacks {', '.join(sorted(missing))}")
        if unknown := value.keys() - hints.keys():
            raise self._refusal(path, f"has the unknown {', '.join(sorted(map(str, unknown)))}")
        prefix = f"{path}." if path else ""
        return kind(**{key: self.convert(hints[key], item, prefix + key) for key, item in value.items()})

    def _wrong(self, path: str, wanted: str, value: object, meant: str = "") -> InputError:
        shown = reprlib.repr(value)
        hint = f": give [{shown}]" if wanted == "a list" and isinstance(value, str | os.PathLike) else meant
        return self._refusal(path, f"must be {wanted}, not {shown}{hint}")

    def _refusal(self, path: str, problem: str) -> InputError:
        return InputError(f"{': '.join(filter(None, (self.where, path)))} {problem}")


def _read(kind: Any, value: Any) -> Any:
    """Return what somebody has written as a value of a kind; the value itself, if it is none."""
    if kind in (list, tuple, Sequence):
        parts = value if isinstance(value, list | tuple) else [value]
        lists = [written_items(part) if isinstance(part, str) else None for part in parts]
        return [item for part, items in zip(parts, lists, strict=True) for item in ([part] if items is None else items)]
    if kind is int and isinstance(value, float) and value.is_integer():
        return int(value)
    readers: dict[Any, Callable[[str], Any]] = {
        int: written_int,
        float: written_float,
        bool: written_bool,
        Path: lambda text: Path(text) if text else None,
    }
    if isinstance(value, str) and kind in readers and (found := readers[kind](value)) is not None:
        return found
    return value


def _is_of(kind: Any, value: object) -> bool:
    """Whether a value is of a kind, as far as its class tells."""
    origin = get_origin(kind) or kind
    if origin is Annotated:
        return _is_of(get_args(kind)[0], value)
    if origin is Any:
        return not isinstance(value, str | bytes | os.PathLike | int | float | types.NoneType)  # a class of its own
    if origin is Literal:
        return value in get_args(kind)
    if origin in (Sequence, Iterable) and isinstance(value, str | bytes | os.PathLike | Mapping):
        return False
    return isinstance(value, (int, float) if origin is float else origin) and (
        not isinstance(value, bool) or origin not in (int, float)
    )


def _in_words(kind: Any) -> str:
    origin = get_origin(kind) or kind
    if origin is Annotated:
        return _in_words(get_args(kind)[0])
    if origin is Literal:
        return f"one of {', '.join(map(str, get_args(kind)))}"
    if origin in (Sequence, Iterable, list, tuple):
        return "a list"
    if origin is Any:
        return "an object"
    return _IN_WORDS.get(origin) or origin.__name__


@cache
def _fields(kind: Any) -> tuple[dict[str, Any], frozenset[str]]:
    """Return the types of the fields of a dataclass or TypedDict by their names, and those that have no default."""
    hints = get_type_hints(kind, include_extras=True)
    if is_typeddict(kind):
        return hints, kind.__required_keys__
    found = [field for field in fields(kind) if field.init]
    required = (field.name for field in found if field.default is MISSING and field.default_factory is MISSING)
    return {field.name: hints[field.name] for field in found}, frozenset(required)
