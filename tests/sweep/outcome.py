"""What came of something that was tried."""

from __future__ import annotations

import traceback
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from mixln.errors import InputError

Status = Literal["right", "refused", "WRONG", "TRACEBACK", "not built", "left out"]


@dataclass
class Outcome:
    """What came of one thing that was tried.

    Attributes:
        check: what was tried.
        status: what came of it.
        detail: the message, or the numbers.
        worst: the largest difference from what is right.
        notes: what mixln said beside it.
    """

    check: str
    status: Status
    detail: str = ""
    worst: float | None = None
    notes: list[str] = field(default_factory=list)


def attempt(check: str, work: Callable[[], Outcome]) -> Outcome:
    """Run a check, and make an outcome of whatever it raises."""
    try:
        return work()
    except Exception as error:
        return of_error(check, error)


def of_error(check: str, error: Exception) -> Outcome:
    """The outcome of what raised this: a refusal, if it is mixln's own error in one line."""
    if isinstance(error, InputError) and "\n" not in str(error):
        return Outcome(check, "refused", str(error))
    return Outcome(check, "TRACEBACK", where(error))


def where(error: BaseException) -> str:
    """An error in one line, with the last line of mixln that it came through."""
    frames = traceback.extract_tb(error.__traceback__)
    own = [frame for frame in frames if "/mixln/" in frame.filename]
    last = (own or frames)[-1]
    line = (str(error).strip().splitlines() or [""])[0][:200]
    outside = "" if own else ", outside mixln"
    return f"{type(error).__name__}: {line} ({Path(last.filename).name}:{last.lineno}{outside})"
