"""Telling how far a diagnosis is."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, TypeVar, overload

from mixln.progress import ReportStage as ReportStage

Item = TypeVar("Item")


class Steps:
    """Counts the steps of a stage, and tells how many are done: call it after each.

    Args:
        stage: what is measured.
        total: of the steps; 0: not known.
        report: told, if it is not None, now and after each step.
    """

    def __init__(self, stage: str, total: int, report: ReportStage | None) -> None:
        self._stage, self._total, self._report = stage, total, report
        self._done = 0
        self._tell()

    def __call__(self) -> None:
        """Count a step."""
        self._done += 1
        self._tell()

    def _tell(self) -> None:
        if self._report is not None:
            self._report(self._stage, self._done, self._total)


class Reported(Sequence[Item]):
    """A sequence that counts each item that is gone through as a step, however often it is gone through.

    Args:
        items: the sequence.
        stage: what is measured.
        report: told, if it is not None.
        passes: how often it will be gone through.
    """

    def __init__(self, items: Sequence[Item], stage: str, report: ReportStage | None, passes: int = 1) -> None:
        self._items = items
        self._step = Steps(stage, passes * len(items), report)

    def __iter__(self) -> Iterator[Item]:
        for item in self._items:
            yield item
            self._step()

    def __len__(self) -> int:
        return len(self._items)

    @overload
    def __getitem__(self, index: int) -> Item: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[Item]: ...
    def __getitem__(self, index: Any) -> Any:
        return self._items[index]
