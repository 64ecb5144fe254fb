"""Telling how far a diagnosis is."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Generic, TypeVar

Item = TypeVar("Item")

ReportStage = Callable[[str, int, int], None]
"""Called with (what is measured, steps done, steps in all), before each step and after the last."""


class Reported(Generic[Item]):
    """A sequence that reports each item that is taken from it, however often it is gone through.

    Args:
        items: the sequence.
        stage: what is measured.
        report: told, if it is not None.
        passes: how often it will be gone through.
    """

    def __init__(self, items: Sequence[Item], stage: str, report: ReportStage | None, passes: int = 1) -> None:
        self._items = items
        self._stage = stage
        self._report = report
        self._total = passes * len(items)
        self._done = 0

    def __iter__(self) -> Iterator[Item]:
        for item in self._items:
            self._tell()
            yield item
            self._done += 1
        if self._done == self._total:
            self._tell()

    def _tell(self) -> None:
        if self._report is not None:
            self._report(self._stage, self._done, self._total)
