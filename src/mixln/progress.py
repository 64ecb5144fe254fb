"""What is shown of work that goes on, on standard error: a bar that goes when it is done, or lines for a log file.

From Python nothing is shown unless it is asked for.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Self

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from mixln.device import is_main_process

ReportStage = Callable[[str, int, int], None]
"""Called with (what is done, steps done, steps in all, or 0 if nobody knows), before each step and after the last."""

LINE_SECONDS = 30.0
"""Between the lines about one stage, where standard error is no terminal."""

_RATE_SECONDS = 3600.0
"""That a rate is over at most: a step can take minutes."""


class _Bar:
    """A bar inside a `with` block, with the rate and the time that is left; without a terminal, a line now and then."""

    def __init__(self, *, shown: bool = True) -> None:
        shown = shown and is_main_process()
        self.console = Console(stderr=True, quiet=not shown)
        self._has_bar = shown and (self.console.is_terminal or self.console.is_jupyter)
        self._progress = Progress(
            TextColumn("{task.description}", markup=False),
            BarColumn(bar_width=20),
            MofNCompleteColumn(),
            TextColumn("{task.fields[status]}", markup=False),
            TimeElapsedColumn(),
            TimeRemainingColumn(compact=True),
            TextColumn("{task.fields[left]}", markup=False),
            console=self.console,
            transient=True,
            speed_estimate_period=_RATE_SECONDS,
        )
        self._task: TaskID | None = None
        self._next_line = 0.0

    def __enter__(self) -> Self:
        if self._has_bar:
            self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._has_bar:
            self._progress.stop()

    def report(self, line: str) -> None:
        """Print a line above the bar."""
        self.console.print(line, markup=False, highlight=False, soft_wrap=True)

    def _begin(self, description: str, done: int, total: int) -> None:
        """Show that something begins: its rate and the time left are its own."""
        if self._task is not None:
            self._progress.remove_task(self._task)
        self._task = self._progress.add_task(
            description, completed=done, total=total or None, status="", left="" if total else None
        )
        if not self._has_bar:
            self._begin_lines(description)

    def _begin_lines(self, description: str) -> None:
        self._next_line = time.monotonic() + LINE_SECONDS
        self.report(description)

    def _line_is_due(self) -> bool:
        """Whether a line is to be printed now, and if so, that the next one is due later."""
        if self._has_bar or time.monotonic() < self._next_line:
            return False
        self._next_line = time.monotonic() + LINE_SECONDS
        return True

    def _show(self, done: int, total: int, status: str = "", unit: str = "") -> None:
        """Show how far it is; `status` takes the place of the steps per second, `unit` stands in lines alone."""
        assert self._task is not None
        self._progress.update(self._task, completed=done, total=total or None)
        task = self._progress.tasks[0]
        status = status or _rate(task.speed)
        self._progress.update(self._task, status=status, left="left" if task.time_remaining else "")
        if self._line_is_due():
            left = f"{_duration(task.time_remaining)} left" if task.time_remaining else ""
            self.report(", ".join(filter(None, [f"{task.description}: {unit}{_share(done, total)}", status, left])))


def _share(done: int, total: int) -> str:
    return f"{done:,} of {total:,}" if total else f"{done:,}"


def _rate(speed: float | None) -> str:
    if not speed:
        return ""
    if speed < 1:
        return f"{1 / speed:.1f} s each"
    return f"{speed:,.0f}/s" if speed >= 10 else f"{speed:.1f}/s"


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}"


def line_printer(*, shown: bool) -> Callable[[str], None]:
    """Return what prints a line on standard error, if it is to be shown."""
    console = Console(stderr=True, quiet=not (shown and is_main_process()))
    return lambda line: console.print(line, markup=False, highlight=False, soft_wrap=True)


class TrainingProgress(_Bar):
    """One bar over all steps of all runs: what is being trained, its loss, its rate, and the time left.

    A stage before the first run, such as tokenising, has the bar to itself.
    """

    def __init__(self, steps_per_run: int, num_runs: int = 1, *, shown: bool = True, unit: str = "tokens") -> None:
        super().__init__(shown=shown)
        self._unit = unit
        self._steps = steps_per_run
        self._total = steps_per_run * num_runs
        self._run = self._made = 0
        self._name = self._stage = ""

    def start_run(self, number: int, description: str) -> None:
        """Show that run `number` (from 0) begins; those before it count as done."""
        self._run, self._made, self._name, self._stage = number, 0, description, ""
        self._begin(description, number * self._steps, self._total)

    def step(self, step: int, loss: float, rate: float) -> None:
        """Show where the current run is."""
        self._made, self._stage = step, ""
        status = f"loss {loss:.3f}, {rate:,.0f} {self._unit}/s"
        self._show(self._run * self._steps + step, self._total, status, "step ")

    def stage(self, stage: str, done: int, total: int) -> None:
        """Show how far something is that is no step of training, such as measuring what was trained."""
        is_new, self._stage = stage != self._stage, stage
        if not self._name:
            if is_new:
                self._begin(stage, done, total)
            self._show(done, total)
        elif self._has_bar:
            self._show(self._run * self._steps + self._made, self._total, f"{stage} {_share(done, total)}")
        elif is_new:
            self._begin_lines(f"{self._name}, {stage}")
        elif self._line_is_due():
            self.report(f"{self._name}, {stage}: {_share(done, total)}")


class StageProgress(_Bar):
    """One bar that begins anew with every stage of a piece of work."""

    def __init__(self, *, shown: bool = True) -> None:
        super().__init__(shown=shown)
        self._name = ""
        self._stage = ""

    def start(self, name: str) -> None:
        """Show the name of what is worked on."""
        self._name, self._stage = name, ""

    def step(self, stage: str, done: int, total: int) -> None:
        """Show how many steps of a stage are done; a total of 0 is not known."""
        if stage != self._stage or self._task is None:
            self._begin(": ".join(filter(None, [self._name, stage])), done, total)
        self._stage = stage
        self._show(done, total)
