"""What a reward gave, checked: a number for each completion, or an error."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from mixln.errors import InputError


def checked_rewards(values: Any, count: int, name: str, describe: Callable[[int], str]) -> list[float]:
    """Return rewards as a list.

    Trainers take what is no number for "not to be scored" and train on, without a word.

    Args:
        values: a list, tuple, array or tensor of numbers.
        count: how many are wanted.
        name: of the reward, for the message.
        describe: says what was scored, by its number (from 0).

    Raises:
        InputError: they are not so many, or one is not a finite number.
    """
    if hasattr(values, "tolist"):
        values = values.tolist()
    if not isinstance(values, list | tuple):
        raise InputError(f"{name} returned a {type(values).__name__}: return a list with one number per completion")
    if len(values) != count:
        raise InputError(f"{name} returned {len(values)} rewards for {count} completions: return one for each")
    found: list[float] = []
    for number, value in enumerate(values):
        value = value.item() if hasattr(value, "item") else value
        if isinstance(value, bool | int | float) and math.isfinite(value):
            found.append(float(value))
            continue
        what = f"{value}, which is no finite number," if isinstance(value, float) else f"{value!r}"
        raise InputError(f"{name} gave {what} to {describe(number)}. A reward must be a finite number")
    return found
