"""mixln's own engine."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from benchmarks.contenders import Outcome
from benchmarks.documents import Counts
from benchmarks.meter import Meter
from benchmarks.settings import Settings, pre_comes_first
from mixln.data import PreparedData
from mixln.tasks import Pretraining, Recipe
from mixln.training import Batch, decide_precision
from mixln.training.decisions import Settings as RunSettings
from mixln.training.distributed import Processes
from mixln.training.memory import keep_freed_memory
from mixln.training.prefetch import Prefetcher
from mixln.training.run import TrainingRun


@dataclass(frozen=True)
class EngineStep:
    """One finished optimiser step."""

    loss: float
    counts: Counts
    parameters: int


def engine_steps(recipe: Recipe, data: PreparedData, device: torch.device) -> Iterator[EngineStep]:
    """Build the recipe's model and train it, as `mixln.training.train` does; yield after every step."""
    run = _start(recipe, data, device)
    parameters = sum(parameter.numel() for parameter in run.model.parameters())
    with Prefetcher(run.batch, device) as batches:
        for step in range(recipe.last_step):
            batch = batches.get(step)
            loss = float(run.make_step(batch).loss)
            yield EngineStep(loss, _counts(run, batch), parameters)


def _start(recipe: Recipe, data: PreparedData, device: torch.device) -> TrainingRun:
    keep_freed_memory()
    processes, compiled = Processes(device), recipe.execution.compile != "never"
    task = Pretraining(recipe, data)
    precision = decide_precision(recipe.precision, device, task.widths(), recipe.rows_of_a_forward(1) * task.positions)
    settings = RunSettings(compiled, torch.get_num_threads(), precision)
    return TrainingRun(task, Path(), processes, settings)


def _counts(run: TrainingRun, batch: Batch) -> Counts:
    return Counts(run.task.weight(batch), batch["input_ids"].numel())


def run(settings: Settings, data: PreparedData, meter: Meter) -> Outcome:
    """Train under `settings.placement`."""
    recipe = settings.recipe()
    outcome = Outcome(math.nan, 0)
    meter.begin()
    for step in engine_steps(recipe, data, meter.device):
        meter.finish_step(step.counts)
        outcome = Outcome(step.loss, step.parameters)
    return outcome


def run_beside_pre(settings: Settings, data: PreparedData, meter: Meter) -> Outcome:
    """Train `pre` and `settings.placement` in turns, step by step on the same batches.

    The meter gets the steps of both: `pre_comes_first` says whose is whose.
    """
    meter.begin()
    runs = [
        _start(replace(settings, placement=name).recipe(), data, meter.device) for name in ("pre", settings.placement)
    ]
    loss = math.nan
    with Prefetcher(runs[0].batch, meter.device) as batches:
        for step in range(settings.total_steps):
            batch = batches.get(step)
            for run in runs if pre_comes_first(step) else reversed(runs):
                loss = float(run.make_step(batch).loss)
                meter.finish_step(_counts(run, batch))
    base, own = (sum(parameter.numel() for parameter in run.model.parameters()) for run in runs)
    return Outcome(loss, own, own - base)
