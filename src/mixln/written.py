"""Values as people write them, on the command line and in recipes: `1e3`, `20k`, `1M`, `[2,4]`, `true`, `null`."""

from __future__ import annotations

import re
from decimal import Decimal

_FACTORS = {"": 0, "k": 3, "M": 6, "G": 9, "B": 9, "T": 12}
"""Powers of ten by the letter behind a number: thousand, million, billion (G and B), trillion."""

_NUMBER = re.compile(r"([+-]?(?:\d[\d_]*(?:\.[\d_]*)?|\.\d[\d_]*)(?:[eE][+-]?\d+)?)([a-zA-Z]?)")

_MOST_DIGITS = 30
"""Of a whole number: more than any count needs, and few enough to compute with."""

_FLAGS = {"true": True, "yes": True, "on": True, "false": False, "no": False, "off": False}


def written_int(text: str) -> int | None:
    """Return the whole number that a text stands for; None: it stands for none (`1.5`, `many`).

    `1e3`, `20k`, `1M`, `1.5B` and `1_000` are whole numbers. The letter may be a small one: `71m` are 71 million.
    """
    found = _NUMBER.fullmatch(text.strip())
    if found is None:
        return None
    letter = (
        found[2] if found[2] in _FACTORS else found[2].upper() if found[2].upper() in _FACTORS else found[2].lower()
    )
    if letter not in _FACTORS:
        return None
    value = Decimal(found[1].replace("_", "")).scaleb(_FACTORS[letter])
    if not value:
        return 0
    if value.adjusted() > _MOST_DIGITS or value != value.to_integral_value():
        return None
    return int(value)


def written_float(text: str) -> float | None:
    """Return the number that a text stands for; None: it stands for none.

    `1e-3`, `.5` and `20k` are numbers. An `m` alone is refused: it could be a thousandth as well as a million.
    """
    found = _NUMBER.fullmatch(text.strip())
    if found is None:
        try:
            return float(text)  # inf and nan, which ranges refuse
        except ValueError:
            return None
    if found[2] not in (*_FACTORS, "k"):
        return None
    return float(Decimal(found[1].replace("_", "")).scaleb(_FACTORS[found[2]]))


def written_bool(text: str) -> bool | None:
    """Return the truth value that a text stands for; None: it stands for none."""
    return _FLAGS.get(text.strip().lower())


def is_null(text: str) -> bool:
    """Whether a text stands for no value: `null` does; `none` is the name of a placement."""
    return text.strip() in ("null", "~")


def written_items(text: str) -> list[str] | None:
    """Return the items of a list that is written in brackets, `[2, 4]`; None: it is none."""
    text = text.strip()
    if not (text.startswith("[") and text.endswith("]")):
        return None
    inner = text[1:-1].strip()
    return [item.strip().strip("\"'") for item in inner.split(",")] if inner else []
