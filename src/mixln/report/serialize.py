"""Results to strict JSON and back, with a version.

NaN and infinities are no JSON: they are written as `null`. A `null` comes back as None where the dataclass has a
`float | None`, and as NaN where it has a `float` (a loss after divergence): so a diverged run can be stored.
"""

from __future__ import annotations

import json
from typing import Any, ClassVar, Protocol, TypeVar, overload

from mixln.errors import InputError
from mixln.records import decode, encode, parse_json
from mixln.report.results import ComparisonResult


class Versioned(Protocol):
    """A dataclass of results, with the version of its form in JSON, and the oldest that is still read.

    What a version adds has a default, which is what older files lack.
    """

    SCHEMA_VERSION: ClassVar[int]
    OLDEST_VERSION: ClassVar[int]


Result = TypeVar("Result", bound=Versioned)

RESULTS_FILE = "results.json"
"""Of a comparison."""

_VERSION_KEY = "schema_version"


def to_json(result: Versioned) -> str:
    """Strict JSON text of a comparison, of one run or of a diagnosis, with its schema version.

    Tuples become lists, and non-finite floats `null`. `config` may hold only what JSON knows (numbers, strings,
    booleans, None, lists, string-keyed dicts); anything else is a TypeError that names the place.
    """
    document = {_VERSION_KEY: result.SCHEMA_VERSION, **encode(result, type(result).__name__)}
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
        document = parse_json(text, "it")
    except InputError as error:
        raise InputError(f"Not a results file: {error}.") from error
    if not isinstance(document, dict) or _VERSION_KEY not in document:
        raise InputError(f"Not a results file: it has no {_VERSION_KEY!r}. Give a results.json that mixln wrote.")
    version = document[_VERSION_KEY]
    oldest, newest = kind.OLDEST_VERSION, kind.SCHEMA_VERSION
    if type(version) is not int or not oldest <= version <= newest:
        readable = f"{newest}" if oldest == newest else f"{oldest} to {newest}"
        raise InputError(
            f"Results have {_VERSION_KEY} {version!r}, and this version of mixln reads {readable}. "
            "Read them with the version of mixln that wrote them, or make them again."
        )
    document = {key: value for key, value in document.items() if key != _VERSION_KEY}
    return decode(kind, document, "the results file", null_is_nan=True)
