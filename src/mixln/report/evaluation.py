"""Scores of models on tasks, beside the constants that they must beat: plain data, tables, page."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

from rich.console import RenderableType
from rich.table import Table
from rich.text import Text

from mixln.report import cells
from mixln.report.serialize import to_json
from mixln.report.series import Estimate, interval_columns
from mixln.report.tables import plain_table
from mixln.result import Result
from mixln.storage import write_file

EVALUATION_FILE = "evaluation.json"


@dataclass(frozen=True)
class ConstantScore:
    """What an answer scores that needs no understanding.

    Attributes:
        name: of the answer, such as `always the first option`.
        score: share of the items that it has right.
    """

    name: str
    score: float


@dataclass(frozen=True)
class EvaluatedTask:
    """A task and its constants.

    Attributes:
        name: of the task.
        metric: that `ModelScore.score` is of.
        num_items: that were scored.
        constants: computed from these items; empty, if the task is not of multiple choice.
    """

    name: str
    metric: str
    num_items: int
    constants: list[ConstantScore] = field(default_factory=list)

    @property
    def best_constant(self) -> ConstantScore | None:
        """The constant that scores highest."""
        return max(self.constants, key=lambda one: one.score, default=None)


@dataclass(frozen=True)
class ConstantTest:
    """A model's answers less a constant's, on the same items.

    Attributes:
        constant: its name.
        difference: of the scores.
        p_value: of McNemar's exact test; None: not defined, since a credit is shared.
        agreement: share of the items in which both answer the same.
    """

    constant: str
    difference: Estimate
    p_value: float | None
    agreement: float


@dataclass(frozen=True)
class ModelScore:
    """One model on one task.

    Attributes:
        model: its name in the report.
        task: its name.
        score: of the task's metric, with the interval over items.
        normalized: accuracy by scores divided by the characters of the options; None: not of multiple choice.
        places: how often each option, by its place, was answered alone.
        tied: items with several options that are equally likely; they count in equal shares.
        unanswered: items with a score that is NaN; they count as wrong.
        cut: items whose prompt is longer than the model's context, so that its beginning was cut off.
        verdict: what the score can be told from, in words; the same of `normalized` in `normalized_verdict`.
        above_constants: whether the score is above every constant and can be told from it.
        tests: against each constant.
        seconds: that it took.
    """

    model: str
    task: str
    score: Estimate
    normalized: Estimate | None = None
    places: list[int] = field(default_factory=list)
    tied: int = 0
    unanswered: int = 0
    cut: int = 0
    verdict: str = ""
    normalized_verdict: str = ""
    above_constants: bool = False
    tests: list[ConstantTest] = field(default_factory=list)
    seconds: float = 0.0


@dataclass(frozen=True)
class ModelTest:
    """Two models on the same items of a task.

    Attributes:
        task: its name.
        model: the one.
        baseline: the other.
        difference: score of the model less that of the baseline, interval over items.
        p_value: of McNemar's exact test; None: not defined.
        better: items that the model alone has right.
        worse: items that the baseline alone has right.
        verdict: in words.
    """

    task: str
    model: str
    baseline: str
    difference: Estimate
    p_value: float | None
    better: int
    worse: int
    verdict: str

    @property
    def sign(self) -> int:
        """1 or -1 where the model can be told to be above or below, by the interval and by the test; else 0."""
        if self.difference.holds_zero or (self.p_value is not None and self.p_value >= 0.05):
            return 0
        return 1 if self.difference.value > 0 else -1


@dataclass(frozen=True)
class SeedScore:
    """Models of one name, which differ by their seed.

    Attributes:
        task: its name.
        model: the name.
        seeds: how many models.
        score: mean over them.
        deviation: standard deviation over them.
        difference: mean of the paired differences to the first name, interval over seeds (from three on); None: it is
            the first, or has no seed in common with it.
    """

    task: str
    model: str
    seeds: int
    score: float
    deviation: float
    difference: Estimate | None = None


@dataclass(frozen=True, repr=False)
class EvaluationReport(Result):
    """Models on tasks, side by side.

    Attributes:
        tasks: in their order.
        scores: of each model on each task.
        tests: of each model against that of the first name with its seed, on the same items.
        seeds: of models with the same name; empty, if all names differ.
        prompting: how items became prompts, in words.
        machine: that it was measured on.
        command: the command line; empty from Python.
        version: of mixln.
        notes: what a reader must know.
    """

    SCHEMA_VERSION: ClassVar[int] = 1
    OLDEST_VERSION: ClassVar[int] = 1

    tasks: list[EvaluatedTask]
    scores: list[ModelScore]
    tests: list[ModelTest]
    seeds: list[SeedScore]
    prompting: str
    machine: str
    command: str
    version: str
    notes: list[str] = field(default_factory=list)

    @property
    def models(self) -> list[str]:
        """The names of the models, in their order."""
        return list(dict.fromkeys(one.model for one in self.scores))

    @property
    def headline(self) -> str:
        """How many scores mean something."""
        with_constants = [one for one in self.scores if one.tests]
        above = sum(one.above_constants for one in with_constants)
        if not with_constants:
            return "No task has constants that a score must beat."
        return f"{above} of {len(with_constants)} scores are above every constant answer and can be told from it."

    def score_of(self, model: str, task: str) -> ModelScore | None:
        """The score of a model on a task; None: not measured."""
        return next((one for one in self.scores if (one.model, one.task) == (model, task)), None)

    def parts(self) -> Iterator[RenderableType]:
        """The headline, the table of scores, then a verdict for each score and each pair of models."""
        yield self.headline
        yield self._table()
        for one in self.scores:
            yield f"- {one.model}, {one.task}: {one.verdict}"
        for test in self.tests:
            yield f"- {test.task}: {test.verdict}"
        yield from (f"- {note}" for note in self.notes)

    def rows(self) -> Sequence[Mapping[str, Any]]:
        """A row for each model and task; then each constant as a column."""
        constants = {task.name: {one.name: one.score for one in task.constants} for task in self.tasks}
        return [
            {
                "model": one.model,
                "task": one.task,
                **interval_columns("score", one.score),
                "length_normalized": None if one.normalized is None else one.normalized.value,
                "unanswered": one.unanswered,
                "tied": one.tied,
                "cut": one.cut,
                "above_constants": one.above_constants,
                "verdict": one.verdict,
                **constants[one.task],
            }
            for one in self.scores
        ]

    def _table(self) -> Table:
        table = plain_table(
            "Share of items that are right, with its 95 % interval over items", "* above every constant"
        )
        table.add_column("task")
        table.add_column("items", justify="right")
        table.add_column("best constant", justify="right")
        for model in self.models:
            table.add_column(Text(model), justify="right", overflow="fold")
        for task in self.tasks:
            best = task.best_constant
            row = [task.name, f"{task.num_items:,}", cells.MISSING if best is None else f"{best.score:.3f}"]
            row += [_cell(self.score_of(model, task.name)) for model in self.models]
            table.add_row(*map(Text, row))
        return table

    def _write(self, folder: Path) -> Path:
        from mixln.report.html import page_environment

        write_file(folder / EVALUATION_FILE, to_json(self))
        files = [EVALUATION_FILE, *(["answers/"] if (folder / "answers").is_dir() else [])]
        page = page_environment().get_template("evaluation.html.jinja")
        text = page.render(result=self, duration=cells.duration, files=files)
        return write_file(folder / "report.html", text)


def _cell(score: ModelScore | None) -> str:
    if score is None:
        return cells.MISSING
    return f"{score.score.format('.3f')}{' *' if score.above_constants else ''}"
