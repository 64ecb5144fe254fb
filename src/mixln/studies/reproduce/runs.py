"""The runs of a table: which there are, which are finished, and how several processes share them.

All tables share one folder. A run's folder has a hash of its recipe and data in its name, so tables that have a run in
common find it there. A process takes a run by its lock file, which the system lets go of when the process ends: what a
killed process leaves behind is taken up, from its last checkpoint, by whoever comes next.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from mixln.errors import InputError
from mixln.report import RunResult, from_json
from mixln.report.statistics import summarize
from mixln.storage import offered_lock
from mixln.studies.compare import RESULT_FILE, Job, compare, plan_jobs
from mixln.studies.reproduce.quantities import quantity
from mixln.studies.reproduce.specification import Scale, Specification
from mixln.studies.stages import ReportStage
from mixln.tasks.kinds import AnyRecipe, kind_of
from mixln.tasks.recipes import kind_of_recipe, load_recipe

CLAIMS_FOLDER = "claims"
"""Of the lock files, beside `runs/`."""

_SECONDS_BETWEEN_LOOKS = 5.0

ReportStep = Callable[[int, float, float], None]


@dataclass(frozen=True)
class Cell:
    """A cell of a table under a variant, by the names of its row, column and variant."""

    row: str
    column: str
    variant: str


@dataclass(frozen=True)
class Run:
    """One run.

    Attributes:
        cell: that it is for.
        job: its recipe and folder.
    """

    cell: Cell
    job: Job

    @property
    def label(self) -> str:
        """What it is, for progress lines."""
        where = ", ".join(filter(None, (self.cell.column, self.cell.variant)))
        return f"{self.cell.row} ({where}): {self.job.label}"

    def result(self) -> RunResult | None:
        """Return what it came to; None: it is not finished.

        Raises:
            InputError: its file cannot be read.
        """
        path = self.job.folder / RESULT_FILE
        if not path.exists():
            return None
        try:
            return from_json(path.read_text(encoding="utf-8"), RunResult)
        except (InputError, OSError, UnicodeDecodeError) as error:
            raise InputError(
                f"{path} cannot be read ({error}). Delete {self.job.folder} to train this run anew"
            ) from error


class TableRuns:
    """The runs of a table at a scale.

    Args:
        specification: of the table.
        scale: of the runs.
        folder: of all tables.
        changes: fields of all recipes that differ, such as `text`; one that a recipe does not have is left out.
        stop_after: end each run after so many steps of its schedule; None: at its end.
        cache: folder for prepared data; None: the default.
        report: told one line at a time of what was found in the data.
        report_stage: told how far their preparation is.
        prepares: whether data is prepared. Without, no run can be made or found, but all are known.

    Raises:
        InputError: the table has no runs at this scale, or a recipe cannot be used.
    """

    def __init__(
        self,
        specification: Specification,
        scale: Scale,
        folder: Path,
        *,
        changes: Mapping[str, Any] | None = None,
        stop_after: int | None = None,
        cache: str | Path | None = None,
        report: Callable[[str], None] | None = None,
        report_stage: ReportStage | None = None,
        prepares: bool = True,
    ) -> None:
        if not specification.columns_at(scale) or scale not in specification.conditions:
            there = [one for one in specification.conditions if specification.columns_at(one)]  # pyright: ignore[reportArgumentType]
            raise InputError(
                f"{specification.name} has no runs at the scale {scale}. It has some at: {', '.join(there) or 'none'}"
            )
        for name in (specification.quantity, *(claim.quantity for claim in specification.claims if claim.quantity)):
            quantity(name)  # an unknown one is found before anything is run
        _check_published(specification)
        self.specification = specification
        self.scale: Scale = scale
        self.folder = folder
        self._conditions = specification.conditions[scale]
        self._changes, self._stop_after, self._cache = dict(changes or {}), stop_after, cache
        self._report, self._report_stage, self._prepares = report, report_stage, prepares
        self._prepared: dict[str, Any] = {}
        self._runs: dict[tuple[Cell, int, float], Run] = {}
        self._finished: dict[Path, RunResult] = {}
        self._open = ExitStack()
        self.cells = [
            Cell(row.name, column.name, variant.name)
            for variant in specification.variants_at(scale)
            for column in specification.columns_at(scale)
            for row in specification.rows
        ]
        self._recipes = {cell: self._recipe(cell) for cell in self.cells}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._open.close()

    def recipe(self, cell: Cell) -> Any:
        """Return what the runs of a cell share."""
        return self._recipes[cell]

    def rates(self, cell: Cell) -> list[float]:
        """Return the learning rates that a cell is tried at."""
        own = self.specification.row(cell.row).learning_rates.get(self.scale)
        return own or self._conditions.learning_rates or [self.recipe(cell).optimizer.learning_rate]

    def first_runs(self, cell: Cell) -> list[Run]:
        """Return the runs that find a cell's learning rate: all rates, with the first seed."""
        return [self._run(cell, self._conditions.seeds[0], rate) for rate in self.rates(cell)]

    def results(self, cell: Cell) -> list[RunResult]:
        """Return the finished runs of a cell at its best learning rate, by seed; none before that is known."""
        found = map(self._result, self._runs_by_seed(cell))
        return [result for result in found if result is not None]

    def folders(self, cell: Cell) -> list[str]:
        """Return the folders of these runs, relative to that of all tables."""
        runs = self._runs_by_seed(cell)
        return [run.job.folder.relative_to(self.folder).as_posix() for run in runs if self._result(run) is not None]

    def best_rate(self, cell: Cell) -> float | None:
        """Return the learning rate at which a cell has the lowest loss with the first seed; None: not known yet."""
        found = [self._result(run) for run in self.first_runs(cell)]
        known = [result for result in found if result is not None]
        if len(known) < len(found):
            return None
        return summarize(known, None)[0][0].learning_rate

    def unfinished(self) -> list[Run]:
        """Return the runs that can be made now: first those of the first seed, of all cells."""
        found: list[tuple[int, Run]] = []
        for cell in self.cells:
            rounds = [(0, run) for run in self.first_runs(cell)] + [*enumerate(self._runs_by_seed(cell))]
            found += [(number, run) for number, run in rounds if self._result(run) is None]
        ordered = [run for _, run in sorted(found, key=lambda one: one[0])]
        return list({run.job.folder: run for run in ordered}.values())  # cells can have runs in common

    def all_runs(self) -> list[Run]:
        """Return all runs. Where a cell's learning rate is not known yet, its further seeds stand at the first rate."""
        runs: list[Run] = []
        for cell in self.cells:
            rate = self.best_rate(cell) or self.rates(cell)[0]
            runs += self.first_runs(cell)
            runs += [self._run(cell, seed, rate) for seed in self._conditions.seeds[1:]]
        return list({run.job.folder: run for run in runs}.values())

    def longest(self) -> int:
        """Return the steps of the longest run."""
        return max(self.recipe(cell).last_step for cell in self.cells)

    def finished(self) -> int:
        """Return how many of them are finished."""
        return sum(self._result(run) is not None for run in self.all_runs())

    def make(
        self,
        start: Callable[[Run], ReportStep | None] | None = None,
        wait: Callable[[Sequence[Run]], None] | None = None,
        report_stage: ReportStage | None = None,
    ) -> None:
        """Make all runs that are not finished, with whoever else works on the folder.

        Args:
            start: called before each run; what it returns is called after every step.
            wait: called once with the runs that others are making, if there is nothing left but to wait for them.
            report_stage: progress of what is measured of a run.

        Raises:
            PlacementError, InputError: a run cannot be made.
        """
        told = False
        while runs := self.unfinished():
            if any(self._make(run, start, report_stage) for run in runs):
                told = False
                continue
            if wait is not None and not told:
                wait(runs)
                told = True
            time.sleep(_SECONDS_BETWEEN_LOOKS)

    def _make(
        self, run: Run, start: Callable[[Run], ReportStep | None] | None, report_stage: ReportStage | None
    ) -> bool:
        """Make a run, unless another process does; returns whether it is finished now."""
        with offered_lock(self.folder / CLAIMS_FOLDER / f"{run.job.folder.name}.lock") as is_ours:
            if not is_ours:
                return False
            if run.result() is not None:  # another process has finished it since we looked
                return True
            recipe: Any = run.job.recipe
            report_step = None if start is None else start(run)
            compare(
                recipe,
                [recipe.model.placement],
                self._data(recipe),
                self.folder,
                seeds=[recipe.seed],
                learning_rates=[recipe.optimizer.learning_rate],
                report_run=None if report_step is None else lambda *_: report_step,
                report_stage=report_stage,
            )
            return True

    def _recipe(self, cell: Cell) -> AnyRecipe:
        column = next(one for one in self.specification.columns if one.name == cell.column)
        variant = next(one for one in self.specification.variants_at(self.scale) if one.name == cell.variant)
        settings = {
            **column.settings[self.scale],
            **self.specification.row(cell.row).settings,
            **variant.settings,
        }
        name = settings.pop("recipe", None)
        where = f"{self.specification.name}, column {cell.column} at the scale {self.scale}"
        if not isinstance(name, str):
            raise InputError(f"{where}: the settings must name a recipe, as text, not {name!r}")
        row = self.specification.row(cell.row)
        is_overruled = bool(row.learning_rates.get(self.scale) or self._conditions.learning_rates)
        if is_overruled and (set_rates := {"learning_rate", "optimizer.learning_rate"} & settings.keys()):
            raise InputError(f"{where}: {min(set_rates)} is set, and the runs have other learning rates. Leave it out")
        if "seed" in settings:
            raise InputError(f"{where}: the settings must not have a seed: all rows have the seeds of the conditions")
        known = _names_of(name)
        settings |= {field: value for field, value in self._changes.items() if field in known}
        recipe = load_recipe(name, settings)
        if self._stop_after is not None:
            recipe = load_recipe(recipe, {"stop_step": min(self._stop_after, recipe.steps)})
        kind_of(recipe).check(recipe)
        return recipe

    def _runs_by_seed(self, cell: Cell) -> list[Run]:
        """The runs of a cell at its best learning rate; none before that is known."""
        rate = self.best_rate(cell)
        return [] if rate is None else [self._run(cell, seed, rate) for seed in self._conditions.seeds]

    def _run(self, cell: Cell, seed: int, rate: float) -> Run:
        key = cell, seed, rate
        if key not in self._runs:
            recipe = self.recipe(cell)
            fingerprint = self._data(recipe).fingerprint if self._prepares else ""
            (job,) = plan_jobs(recipe, [recipe.model.placement], fingerprint, self.folder, [seed], [rate])
            self._runs[key] = Run(cell, job)
        return self._runs[key]

    def _result(self, run: Run) -> RunResult | None:
        """What a run came to, which is read once: a finished run does not change."""
        folder = run.job.folder
        if folder not in self._finished and (result := run.result()) is not None:
            self._finished[folder] = result
        return self._finished.get(folder)

    def _data(self, recipe: Any) -> Any:
        """What a recipe's runs train on, prepared once for all that have the same."""
        key = json.dumps(_without_scheme(recipe.to_dict()), sort_keys=True)
        if key not in self._prepared:
            prepared = kind_of(recipe).prepare(recipe, self._cache, self._report, self._report_stage)
            self._prepared[key] = self._open.enter_context(prepared)
        return self._prepared[key]


def _check_published(specification: Specification) -> None:
    """Raise InputError if a published number cannot be one of the table's quantity, such as a perplexity of 0."""
    shown = quantity(specification.quantity)
    for row in specification.rows:
        for column, number in row.published.items():
            try:
                possible = number is None or math.isfinite(shown.from_published(number))
            except ValueError:
                possible = False
            if not possible:
                raise InputError(
                    f"{specification.name}: {row.name} has {number} published for {column}, which is no {shown.title}"
                )


def _without_scheme(fields: dict[str, Any]) -> dict[str, Any]:
    """A recipe's fields without what rows, variants and seeds change."""
    model = {name: value for name, value in fields["model"].items() if name not in ("placement", "embedding_std")}
    return {**{name: value for name, value in fields.items() if name not in ("seed", "optimizer")}, "model": model}


def _names_of(recipe: str) -> set[str]:
    """The short names of fields that recipes of the kind of this one have."""
    kind = kind_of_recipe(recipe)
    return {*kind.short_names, *kind.budgets}
