"""`--then evaluate=TASKS`: every model answers the same items, and the answers are compared with those of the baseline.

The report of all models is `mixln evaluate`'s own; what stands in the comparison is taken from it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from statistics import fmean
from typing import Any

from mixln.device import default_device
from mixln.errors import InputError
from mixln.evaluation.answers import read_answers
from mixln.evaluation.harness import Prompting, load_task, rehearse_task, require_chat_template
from mixln.evaluation.local_tasks import is_local_task
from mixln.models.load import load_model
from mixln.progress import StageProgress
from mixln.report.evaluation import EvaluationReport
from mixln.report.statistics import summarize_step
from mixln.report.step_results import Quantity, QuantitySummary, StepConstant, StepResult, StepRun, words_of_seeds
from mixln.storage import claim_folder
from mixln.studies.evaluation import Request, evaluate_models, require_different, shown_names
from mixln.studies.steps.step import ChosenRun, ModelsToCome, Step, StepPlace

_MEAN = Quantity("mean", "mean of the tasks", True)
_ACCURACY = "accuracy"


class EvaluationStep(Step):
    """Scores every model on the same tasks.

    Args:
        written: as it was asked for.
        tasks: see `mixln.evaluate`, as the other arguments.
        task_path: a folder of further tasks.
        limit: items of each task.
        batch_size: requests that go through a model together.
        num_fewshot: solved items in each prompt.
        apply_chat_template: write prompts as a conversation.
        fewshot_as_multiturn: show solved items as turns of their own.
        system_instruction: a text before every prompt.
        precision: to compute in.

    Raises:
        InputError: a task cannot be loaded, or the settings cannot be used.
    """

    name = "evaluate"
    makes_models = False

    def __init__(
        self,
        written: str,
        *,
        tasks: Sequence[str],
        task_path: str | Path | None = None,
        limit: int | None = None,
        batch_size: int = 8,
        num_fewshot: int | None = None,
        apply_chat_template: bool = False,
        fewshot_as_multiturn: bool = False,
        system_instruction: str | None = None,
        precision: str = "auto",
    ) -> None:
        if not tasks:
            raise InputError("`tasks` is empty: name at least one")
        self.written = written
        self._precision = precision
        prompting = Prompting(num_fewshot, apply_chat_template, fewshot_as_multiturn, system_instruction)
        self._request = Request(limit, batch_size, prompting)
        self._tasks = [load_task(task, include_path=task_path) for task in tasks]
        require_different(self._tasks)
        for name, task in zip(tasks, self._tasks, strict=True):
            # every row of a file is checked already, but not whether there are as many solved items as are wanted
            read_answers(task, rehearse_task(task, limit=1 if is_local_task(name) else limit, prompting=prompting))

    def prepare(self, models: ModelsToCome) -> ModelsToCome:
        """Check what depends on the tokenizer."""
        require_chat_template(models.tokenizer, self._request.prompting)
        return models

    def identity(self) -> dict[str, Any]:
        """The items, and how they are asked."""
        return {
            "tasks": [task.digest(self._request.limit) for task in self._tasks],
            "request": asdict(self._request),
            "precision": self._precision,
        }

    def run(self, runs: Sequence[ChosenRun], place: StepPlace) -> tuple[StepResult, list[ChosenRun]]:
        """Ask one model after the other, those of the baseline first."""
        claim_folder(place.folder)
        asked = sorted((run for run in runs if run.model is not None), key=lambda run: run.placement != place.baseline)
        names, seeds = [run.placement for run in asked], [run.seed for run in asked]
        opened = [partial(load_model, str(run.model), dtype=self._precision, device=default_device()) for run in asked]
        with StageProgress(shown=place.shown) as shown:
            report = evaluate_models(
                list(zip(names, opened, strict=True)),
                self._tasks,
                self._request,
                place.folder,
                seeds=seeds,
                kept_in=place.kept,
                command=place.command,
                progress=shown,
            )
        shown_as = {(run.placement, run.seed): name for run, name in zip(asked, shown_names(names, seeds), strict=True)}
        return self._result(report, runs, shown_as, place), list(runs)

    def _result(
        self,
        report: EvaluationReport,
        runs: Sequence[ChosenRun],
        shown_as: dict[tuple[str, int], str],
        place: StepPlace,
    ) -> StepResult:
        quantities = [Quantity(task.name, f"{task.metric}, share of items", True) for task in report.tasks]
        if len(quantities) > 1 and all(task.metric == _ACCURACY for task in report.tasks):
            quantities.append(_MEAN)
        results: list[StepRun] = []
        for run in runs:
            name = shown_as.get((run.placement, run.seed), "")
            values = {one.task: one.score.value for one in report.scores if one.model == name}
            results.append(
                StepRun(run.placement, run.seed, run.learning_rate, _with_mean(values, quantities), run.remark)
            )
        page = (place.folder / "report.html").relative_to(place.out).as_posix()
        links = {"all scores, intervals over items and tests": page} if shown_as else {}
        summaries = summarize_step(results, quantities, place.baseline)
        return StepResult(
            self.written,
            f"Scores on {', '.join(task.name for task in report.tasks)}",
            quantities,
            results,
            [replace(one, marked=_is_marked(one, report, shown_as)) for one in summaries],
            [StepConstant(name, _with_mean(values, quantities)) for name, values in _constants(report).items()],
            "above every constant answer, and told from it, with every seed",
            [*_verdicts(report, shown_as), *_tests(report, summaries, shown_as, place.baseline)],
            {
                "Items": ", ".join(f"{task.name} {task.num_items:,}" for task in report.tasks),
                "Prompts": report.prompting,
            },
            links,
        )


def _with_mean(values: dict[str, float], quantities: Sequence[Quantity]) -> dict[str, float]:
    """Values with their mean, if there is to be one and all are there."""
    tasks = [quantity.name for quantity in quantities if quantity is not _MEAN]
    has_mean = _MEAN in quantities and all(name in values for name in tasks)
    return values | ({_MEAN.name: fmean(values[name] for name in tasks)} if has_mean else {})


def _constants(report: EvaluationReport) -> dict[str, dict[str, float]]:
    """The scores of each constant answer by task, and of the best of each task.

    What the most frequent answer is differs between tasks, so it stands in the report of the evaluation alone.
    """
    found: dict[str, dict[str, float]] = {}
    for task in report.tasks:
        for constant in task.constants:
            found.setdefault(constant.name.partition(" (")[0], {})[task.name] = constant.score
    best = {task.name: task.best_constant.score for task in report.tasks if task.best_constant is not None}
    return found | ({"the best constant of each" if len(best) > 1 else "the best constant": best} if best else {})


def _is_marked(one: QuantitySummary, report: EvaluationReport, shown_as: dict[tuple[str, int], str]) -> bool:
    names = {name for (placement, _), name in shown_as.items() if placement == one.placement}
    scores = [score for score in report.scores if score.task == one.quantity and score.model in names]
    return bool(scores) and all(score.above_constants for score in scores)


def _verdicts(report: EvaluationReport, shown_as: dict[tuple[str, int], str]) -> list[str]:
    """For each scheme and task what its scores can be told from; seeds with one verdict together."""
    found: list[str] = []
    for placement in dict.fromkeys(placement for placement, _ in shown_as):
        for task in report.tasks:
            seeds_of: dict[str, list[int]] = {}
            for (own, seed), name in shown_as.items():
                if own == placement and (score := report.score_of(name, task.name)) is not None and score.verdict:
                    seeds_of.setdefault(score.verdict, []).append(seed)
            count = sum(map(len, seeds_of.values()))
            words = [
                verdict if len(seeds) == count else f"{words_of_seeds(seeds)}: {verdict}"
                for verdict, seeds in seeds_of.items()
            ]
            if words:
                found.append(f"`{placement}`, {task.name}: {'; '.join(words)}{_of_all(count, len(seeds_of))}")
    return found


def _of_all(count: int, verdicts: int) -> str:
    return f" (with each of {count} seeds)" if count > 1 and verdicts == 1 else ""


def _tests(
    report: EvaluationReport,
    summaries: Sequence[QuantitySummary],
    shown_as: dict[tuple[str, int], str],
    baseline: str | None,
) -> list[str]:
    """For each scheme and task how it stands to the baseline: over the items, seed by seed, and over the seeds."""
    scheme_of = {name: placement for (placement, _), name in shown_as.items()}
    found: list[str] = []
    for one in summaries:
        signs = [
            test.sign
            for test in report.tests
            if test.task == one.quantity
            and scheme_of[test.model] == one.placement
            and scheme_of[test.baseline] == baseline
        ]
        if one.difference is None or not signs:
            continue
        told = "" if one.difference.interval is None else ", which holds zero" * one.difference.holds_zero
        found.append(
            f"`{one.placement}` less `{baseline}`, {one.quantity}: {one.difference.format('+.3f')}{told}; over items "
            f"(paired, McNemar) above with {signs.count(1)} and below with {signs.count(-1)} of {len(signs)} "
            f"seed{'s' * (len(signs) > 1)}"
        )
    return found
