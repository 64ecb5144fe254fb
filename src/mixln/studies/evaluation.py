"""Models on tasks: run, compared with constants and with each other."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from importlib.metadata import version
from pathlib import Path
from statistics import fmean, stdev
from typing import Any, Protocol

import transformers
from torch import nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase, PreTrainedTokenizerFast

from mixln.data.tokenizer import tokenizer_hash
from mixln.errors import InputError
from mixln.evaluation.answers import (
    accuracy_interval,
    mean_interval,
    paired_difference,
    place_counts,
    read_answers,
)
from mixln.evaluation.harness import LoadedTask, Prompting, run_task
from mixln.evaluation.items import Constant, Picks, constants, credits
from mixln.evaluation.task_scores import item_scores
from mixln.evaluation.verdicts import AgainstConstant, against_constants, is_above_constants, verdict
from mixln.models.causal import is_causal_language_model
from mixln.report.evaluation import (
    ConstantScore,
    ConstantTest,
    EvaluatedTask,
    EvaluationReport,
    ModelScore,
    ModelTest,
    SeedScore,
)
from mixln.report.series import Estimate
from mixln.report.statistics import mean_over_seeds
from mixln.studies.kept_measures import code_digest, config_of, digest_of_weights
from mixln.studies.kept_parts import KeptParts
from mixln.studies.machine import describe_machine
from mixln.studies.measured_models import OpenModel
from mixln.version import __version__

ANSWERS_FOLDER = "answers"
"""In the folder of a report."""


@dataclass(frozen=True)
class Answered:
    """What one model answered on one task: all that scores, tests and verdicts are computed from.

    Attributes:
        credits: what each item counts, higher is better; one number, if the metric is no mean over items.
        cut: items whose prompt did not fit into the model's context.
        seconds: that it took.
        gold: the right options of each item; empty, as the next three, if the task is not of multiple choice.
        picks: the likeliest option of each item, or several that are tied, or none.
        normalized: the same, of likelihoods divided by the options' characters.
        constants: constant answers.
    """

    credits: list[float]
    cut: int
    seconds: float
    gold: list[list[int]]
    picks: Picks
    normalized: Picks
    constants: list[Constant]


@dataclass(frozen=True)
class Request:
    """How models are evaluated.

    Attributes:
        limit: items of each task; None: all.
        batch_size: requests that go through a model together.
        prompting: how items become prompts.
    """

    limit: int | None = None
    batch_size: int = 8
    prompting: Prompting = field(default_factory=Prompting)

    def __post_init__(self) -> None:
        for name, number in (("limit", self.limit), ("batch_size", self.batch_size)):
            if number is not None and number < 1:
                raise InputError(f"`{name}` must be at least 1, not {number}")


def answer(
    model: nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    task: LoadedTask,
    request: Request,
    report: Callable[[int, int], None] | None = None,
) -> Answered:
    """Run a task on a model.

    Args:
        model: a causal language model.
        tokenizer: of the model.
        task: to run.
        request: how.
        report: called with (rows so far, rows in all) while the model runs.

    Raises:
        InputError: it is no causal language model, or the task cannot be run.
    """
    if not (isinstance(model, PreTrainedModel) and is_causal_language_model(model)):
        raise InputError(f"tasks need a causal language model, and a {type(model).__name__} is not one. Give one")
    started = time.perf_counter()
    found = run_task(
        task,
        model,
        tokenizer,
        limit=request.limit,
        batch_size=request.batch_size,
        prompting=request.prompting,
        report=report,
    )
    answers = read_answers(task, found)
    seconds = time.perf_counter() - started
    if answers is None:
        scores = item_scores(task, found)
        return Answered(scores if isinstance(scores, list) else [scores], found.cut, seconds, [], [], [], [])
    picks, gold = answers.picks(), [item.gold for item in answers.items]
    normalized = answers.picks(normalized=True) if answers.can_be_normalized else []
    return Answered(credits(picks, gold), found.cut, seconds, gold, picks, normalized, constants(answers.items))


def kept_answers(
    folder: Path | None, model: nn.Module, tokenizer: PreTrainedTokenizerBase, request: Request
) -> KeptParts[Answered]:
    """Return the tasks that a model has answered, by an earlier call with the same weights, tokenizer and request.

    Args:
        folder: of the report; None: nothing is kept.
        model: to evaluate.
        tokenizer: of the model.
        request: how.
    """

    def identify() -> dict[str, Any] | None:
        weights = digest_of_weights(model)
        if weights is None:
            return None
        return {
            "model": [type(model).__qualname__, config_of(model), weights],
            "tokenizer": tokenizer_hash(tokenizer)
            if isinstance(tokenizer, PreTrainedTokenizerFast)
            else repr(tokenizer),
            "chat_template": tokenizer.chat_template,
            "request": asdict(request),
            "machine": describe_machine(),
            "versions": [__version__, code_digest(), transformers.__version__, version("lm_eval")],
        }

    return KeptParts(Answered, None if folder is None else folder / ANSWERS_FOLDER, identify, "tasks")


class Progress(Protocol):
    """What is shown of an evaluation."""

    def start(self, name: str) -> None:
        """A model begins."""

    def step(self, stage: str, done: int, total: int) -> None:
        """So many rows of a task are done."""


def evaluate_models(
    models: Sequence[tuple[str, OpenModel]],
    tasks: Sequence[LoadedTask],
    request: Request,
    folder: Path | None,
    *,
    seeds: Sequence[int] | None = None,
    kept_in: Path | None = None,
    command: str = "",
    progress: Progress,
    opened: Callable[[nn.Module], None] = lambda _: None,
) -> EvaluationReport:
    """Run tasks on models, one model after the other, and judge the answers.

    Args:
        models: name of each, and how it is opened; see `make_report`.
        tasks: to run.
        request: how.
        folder: where the report is saved whenever a task is finished; None: it is not.
        seeds: see `make_report`.
        kept_in: the folder of what is answered; None: `folder`.
        command: the command line.
        progress: told how far it is.
        opened: called with each model.

    Raises:
        InputError: two tasks have one name; or as `answer`, or a model cannot be opened.
    """
    require_different(tasks)
    names = [name for name, _ in models]
    keys = {task.name: f"{task.name} {task.digest(request.limit)[:16]}" for task in tasks}
    answered: list[tuple[str, dict[str, Answered]]] = [(name, {}) for name in names]
    report = make_report(tasks, answered, request.prompting, seeds=seeds, command=command)
    for (_, found), (_, open_model), shown in zip(answered, models, shown_names(names, seeds), strict=True):
        model, tokenizer = open_model()
        opened(model)
        progress.start(shown)
        kept = kept_answers(kept_in or folder, model, tokenizer, request)
        for task in tasks:

            def report_rows(done: int, total: int, stage: str = task.name) -> None:
                progress.step(stage, done, total)

            work = partial(answer, model, tokenizer, task, request, report_rows)
            found[task.name] = kept.take(keys[task.name], work)
            report = make_report(tasks, answered, request.prompting, seeds=seeds, command=command)
            if folder is not None:  # what is finished is safe if a later task fails
                report.save(folder)
        del model
    return report


def require_different(tasks: Sequence[LoadedTask]) -> None:
    """Raise InputError if two tasks have one name."""
    if len({task.name for task in tasks}) < len(tasks):
        raise InputError("a task is named twice: name each once, and give files of tasks different names")


def make_report(
    tasks: Sequence[LoadedTask],
    models: Sequence[tuple[str, Mapping[str, Answered]]],
    prompting: Prompting,
    *,
    seeds: Sequence[int] | None = None,
    command: str = "",
) -> EvaluationReport:
    """Judge what models answered.

    Args:
        tasks: that were run.
        models: the name of each model, and what it answered by the name of the task; models of one name differ by their
            seed. Those of the first name are what the others are compared with, seed by seed.
        prompting: how items became prompts.
        seeds: of each model; None: models of one name are numbered.
        command: the command line.
    """
    names = [name for name, _ in models]
    numbers = _numbers(names) if seeds is None else list(seeds)
    shown = shown_names(names, seeds)
    answered = dict(zip(shown, (answers for _, answers in models), strict=True))
    baselines = _baselines(names, numbers, shown)
    evaluated: list[EvaluatedTask] = []
    scores: list[ModelScore] = []
    tests: list[ModelTest] = []
    over_seeds: list[SeedScore] = []
    for task in tasks:
        done = {name: answers[task.name] for name, answers in answered.items() if task.name in answers}
        if not done:
            continue
        evaluated.append(_evaluated(task, next(iter(done.values()))))
        scores += [_score(name, task, found) for name, found in done.items()]
        pairs = [(name, baselines[name]) for name in done if baselines.get(name) in done]
        tests += [_test(task.name, name, base, done[name], done[base]) for name, base in pairs]
        own = [
            (name, number, answers[task.name])
            for (name, answers), number in zip(models, numbers, strict=True)
            if task.name in answers
        ]
        over_seeds += _seeds(task.name, own)
    notes = []
    if any(one.cut for one in scores):
        notes.append(
            "lm-evaluation-harness cuts off the beginning of prompts that are longer than a model's context: the items "
            "are counted under 'prompt cut'."
        )
    return EvaluationReport(
        evaluated, scores, tests, over_seeds, _words(prompting), describe_machine(), command, __version__, notes
    )


def shown_names(names: Sequence[str], seeds: Sequence[int] | None = None) -> list[str]:
    """Names of models as a report shows them: those that occur several times have their seed or number with them."""
    numbers = _numbers(names) if seeds is None else seeds
    what = " #" if seeds is None else ", seed "
    return [
        name if names.count(name) == 1 else f"{name}{what}{number}" for name, number in zip(names, numbers, strict=True)
    ]


def _numbers(names: Sequence[str]) -> list[int]:
    """For each name how often it has occurred so far."""
    return [names[: place + 1].count(name) for place, name in enumerate(names)]


def _baselines(names: Sequence[str], numbers: Sequence[int], shown: Sequence[str]) -> dict[str, str]:
    """What each model is compared with: that of the first name with the same seed, or else the first of all."""
    first = {number: one for name, number, one in zip(names, numbers, shown, strict=True) if name == names[0]}
    return {
        one: first.get(number, shown[0])
        for name, number, one in zip(names, numbers, shown, strict=True)
        if name != names[0]
    }


def _evaluated(task: LoadedTask, found: Answered) -> EvaluatedTask:
    scores = [ConstantScore(one.name, fmean(credits(one.picks, found.gold))) for one in found.constants]
    return EvaluatedTask(task.name, "accuracy" if found.picks else task.metric, len(found.credits), scores)


def _score(name: str, task: LoadedTask, found: Answered) -> ModelScore:
    mean = fmean(found.credits)
    if not found.picks:
        interval = mean_interval(found.credits)
        return ModelScore(name, task.name, Estimate(mean, interval), cut=found.cut, seconds=found.seconds)
    against = against_constants(found.picks, found.gold, found.constants)
    normalized, normalized_verdict = None, ""
    if found.normalized:
        share = fmean(credits(found.normalized, found.gold))
        normalized = Estimate(share, accuracy_interval(share, len(found.gold)))
        normalized_verdict = verdict(found.normalized, against_constants(found.normalized, found.gold, found.constants))
    places = place_counts(found.picks)
    return ModelScore(
        name,
        task.name,
        Estimate(mean, accuracy_interval(mean, len(found.credits))),
        normalized,
        [places.get(place, 0) for place in range(max(map(len, _all_options(found.constants))))],
        sum(len(picked) > 1 for picked in found.picks),
        sum(not picked for picked in found.picks),
        found.cut,
        verdict(found.picks, against),
        normalized_verdict,
        is_above_constants(found.picks, against),
        [_constant_test(one) for one in against],
        found.seconds,
    )


def _all_options(constants: Sequence[Constant]) -> Picks:
    """All options of each item: what chance picks."""
    return constants[0].picks


def _constant_test(one: AgainstConstant) -> ConstantTest:
    difference = one.difference
    return ConstantTest(one.name, Estimate(difference.value, difference.interval), difference.p_value, one.agreement)


def _test(task: str, name: str, baseline: str, found: Answered, base: Answered) -> ModelTest:
    if len(found.credits) != len(base.credits) or found.gold != base.gold:
        raise InputError(
            f"{name} and {baseline} did not answer the same items of {task}. Evaluate both again in one new folder"
        )
    difference = paired_difference(found.credits, base.credits)
    words = {1: "is above", -1: "is below", 0: "cannot be told from"}[difference.sign]
    return ModelTest(
        task,
        name,
        baseline,
        Estimate(difference.value, difference.interval),
        difference.p_value,
        difference.better,
        difference.worse,
        f"{name} {words} {baseline} on these {len(found.credits):,} items",
    )


def _seeds(task: str, models: Sequence[tuple[str, int, Answered]]) -> list[SeedScore]:
    """Means over models of one name; empty, if every name is there once."""
    by_name: dict[str, dict[int, float]] = {}
    for name, number, answered in models:
        by_name.setdefault(name, {})[number] = fmean(answered.credits)
    if all(len(values) == 1 for values in by_name.values()):
        return []
    first = next(iter(by_name))
    found: list[SeedScore] = []
    for name, values in by_name.items():
        deltas = [score - by_name[first][number] for number, score in values.items() if number in by_name[first]]
        difference = mean_over_seeds(deltas) if name != first and deltas else None
        deviation = stdev(values.values()) if len(values) > 1 else 0.0
        found.append(SeedScore(task, name, len(values), fmean(values.values()), deviation, difference))
    return found


def _words(prompting: Prompting) -> str:
    number = prompting.num_fewshot
    words = ["solved items as each task says" if number is None else f"{number} solved items in each prompt"]
    if prompting.apply_chat_template:
        words.append("written by the chat template of each tokenizer")
    if prompting.fewshot_as_multiturn:
        words.append("solved items as turns of their own")
    if prompting.system_instruction:
        words.append(f"after the system instruction {prompting.system_instruction!r}")
    return ", ".join(words)
