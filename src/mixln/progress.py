"""What a command shows while it works, on standard error."""

from __future__ import annotations

from types import TracebackType
from typing import Self

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from mixln.device import is_main_process


class _Bar:
    """A bar on the terminal inside a `with` block; `self._progress` is what draws it."""

    _progress: Progress
    console: Console

    def __enter__(self) -> Self:
        self._progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._progress.stop()

    def report(self, line: str) -> None:
        """Print a line above the bar."""
        self.console.print(line, markup=False, highlight=False, soft_wrap=True)


class TrainingProgress(_Bar):
    """One bar over all steps of all runs: what is being trained, its loss, tokens per second, and the time left."""

    def __init__(self, steps_per_run: int, num_runs: int = 1) -> None:
        self._steps = steps_per_run
        self._run = 0
        self.console = Console(stderr=True, quiet=not is_main_process())
        self._progress = Progress(
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[status]}", markup=False),
            TimeRemainingColumn(),
            console=self.console,
        )
        self._task = self._progress.add_task("", total=steps_per_run * num_runs, status="")

    def start_run(self, number: int, description: str) -> None:
        """Show that run `number` (from 0) begins; those before it count as done."""
        self._run = number
        if not self.console.is_terminal:
            self.report(description)
        self._progress.update(
            self._task, description=description, completed=number * self._steps, status="", refresh=True
        )

    def step(self, step: int, loss: float, tokens_per_second: float) -> None:
        """Show where the current run is."""
        status = f"loss {loss:.3f}  {tokens_per_second:,.0f} tokens/s"
        self._progress.update(self._task, completed=self._run * self._steps + step, status=status)


class StageProgress(_Bar):
    """One bar that begins anew with every stage of a piece of work."""

    def __init__(self) -> None:
        self.console = Console(stderr=True, quiet=not is_main_process())
        self._progress = Progress(
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            MofNCompleteColumn(),
            TimeRemainingColumn(),
            console=self.console,
            transient=True,
        )
        self._task = self._progress.add_task("", total=None)
        self._name = ""
        self._stage = ""

    def start(self, name: str) -> None:
        """What is worked on."""
        self._name = name

    def step(self, stage: str, done: int, total: int) -> None:
        """Show how far a stage is."""
        if stage != self._stage and not self.console.is_terminal:
            self.console.print(f"{self._name}: {stage}", markup=False, highlight=False, soft_wrap=True)
        self._stage = stage
        self._progress.update(self._task, description=f"{self._name}: {stage}", completed=done, total=total)
