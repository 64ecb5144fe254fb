"""The steps after a comparison, for the runs at each scheme's best learning rate."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from mixln.data import PreparedData
from mixln.device import num_processes
from mixln.errors import InputError
from mixln.report.aggregate import best_runs
from mixln.report.comparison import Comparison
from mixln.report.results import RunResult
from mixln.report.statistics import has_diverged, step_changes
from mixln.report.step_results import StepResult
from mixln.studies.compare import Job
from mixln.studies.steps.step import ChosenRun, ModelsToCome, Step, StepPlace, naming
from mixln.tasks.build import build_model, model_without_weights
from mixln.tasks.recipe import Recipe
from mixln.training import MODEL_FOLDER

STEPS_FOLDER = "then"
"""In the folder of a comparison."""


def prepare_steps(steps: Sequence[Step], job: Job, data: Any) -> None:
    """Read and check all that the steps need, before the first model is trained.

    Args:
        steps: in their order.
        job: any of the comparison.
        data: that the models are trained on.

    Raises:
        InputError: a step could not be done.
    """
    if not steps:
        return
    if num_processes() > 1:
        raise InputError(
            "`then` works in one process. Run the comparison without it under torchrun, then the same command with "
            "`then` without torchrun: finished runs are kept"
        )
    recipe = job.recipe
    assert isinstance(recipe, Recipe)
    assert isinstance(data, PreparedData)
    config = model_without_weights(recipe, data.tokenizer).config
    models = ModelsToCome(data.tokenizer, config, lambda: build_model(recipe, data.tokenizer))
    for step in steps:
        with naming(step):
            models = step.prepare(models)


def follow(
    comparison: Comparison, jobs: Sequence[Job], steps: Sequence[Step], out: Path, *, shown: bool = False
) -> Iterator[Comparison]:
    """Do one step after the other, and yield the comparison with what is known after each.

    Args:
        comparison: the finished runs.
        jobs: all that were planned, with the folders of the runs.
        steps: prepared, in their order.
        out: folder of the comparison.
        shown: whether to show on standard error how far it is.

    Raises:
        InputError: a step cannot be done.
    """
    runs = _chosen_runs(comparison, jobs)
    digest, done, titles = "", list[tuple[str, StepResult]](), list[str]()
    for step in steps:
        measured = json.dumps([step.name, step.identity()], sort_keys=True)
        own = hashlib.sha256(f"{digest}{measured}".encode()).hexdigest()
        folder = out / STEPS_FOLDER
        place = StepPlace(
            folder / f"{step.name}_{own[:8]}", folder, out, comparison.baseline, comparison.command, shown
        )
        with naming(step):
            result, runs = step.run(runs, place)
        if titles:
            result = replace(result, title=f"{result.title}, after {' and '.join(titles)}")
        if (before := next((one for what, one in done if what == measured), None)) is not None:
            result = replace(result, since=before.title, changes=step_changes(before, result))
        done.append((measured, result))
        if step.makes_models:  # the later steps are others if this one is; they are not if an evaluation is
            digest = own
            titles.append(step.written.partition(" ")[0])
        comparison = replace(comparison, then=[*comparison.then, result])
        yield comparison


def _chosen_runs(comparison: Comparison, jobs: Sequence[Job]) -> list[ChosenRun]:
    """The runs at each scheme's best learning rate, whose models go on; a diverged one has none."""
    folders = {
        (job.recipe.model.placement, job.recipe.seed, job.recipe.optimizer.learning_rate): job.folder for job in jobs
    }
    return [
        _chosen(run, folders[run.placement, run.seed, run.learning_rate])
        for runs in best_runs(comparison).values()
        for run in runs
    ]


def _chosen(run: RunResult, folder: Path) -> ChosenRun:
    model, remark = folder / MODEL_FOLDER, ""
    if has_diverged(run):
        model, remark = None, "its training diverged, so it is left out"
    elif not run.has_learned:
        remark = "it has not learned word order, so that its numbers say little"
    return ChosenRun(folder.name, run.placement, run.seed, run.learning_rate, model, remark)
