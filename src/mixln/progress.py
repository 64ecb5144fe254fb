"""What a command shows while it works, on standard error."""

from __future__ import annotations

from typing import Self

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, ProgressColumn, TextColumn, TimeRemainingColumn

from mixln.device import is_main_process


class _Bar:
    """A bar on the terminal inside a `with` block."""

    def __init__(self, *middle: ProgressColumn, transient: bool = False) -> None:
        self.console = Console(stderr=True, quiet=not is_main_process())
        columns = (TextColumn("{task.description}", markup=False), BarColumn(), MofNCompleteColumn())
        self._progress = Progress(*columns, *middle, TimeRemainingColumn(), console=self.console, transient=transient)
        self._task = self._progress.add_task("", total=None, status="")

    def __enter__(self) -> Self:
        self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._progress.stop()

    def report(self, line: str) -> None:
        """Print a line above the bar."""
        self.console.print(line, markup=False, highlight=False, soft_wrap=True)


class TrainingProgress(_Bar):
    """One bar over all steps of all runs: what is being trained, its loss, tokens per second, and the time left."""

    def __init__(self, steps_per_run: int, num_runs: int = 1) -> None:
        super().__init__(TextColumn("{task.fields[status]}", markup=False))
        self._steps = steps_per_run
        self._run = 0
        self._progress.update(self._task, total=steps_per_run * num_runs)

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
        super().__init__(transient=True)
        self._name = ""
        self._stage = ""

    def start(self, name: str) -> None:
        """Show the name of what is worked on."""
        self._name = name

    def step(self, stage: str, done: int, total: int) -> None:
        """Show how many parts of a stage are done."""
        if stage != self._stage and not self.console.is_terminal:
            self.report(f"{self._name}: {stage}")
        self._stage = stage
        self._progress.update(self._task, description=f"{self._name}: {stage}", completed=done, total=total)
