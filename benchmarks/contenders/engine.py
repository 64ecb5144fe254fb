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
from mixln.data import Prefetcher, PreparedData
from mixln.training import Recipe
from mixln.training.distributed import Processes
from mixln.training.memory import keep_freed_memory
from mixln.training.run import Settings as RunSettings
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
            yield EngineStep(loss, Counts(batch.num_predicted_tokens, batch.input_ids.numel()), parameters)


def _start(recipe: Recipe, data: PreparedData, device: torch.device) -> TrainingRun:
    keep_freed_memory()
    settings = RunSettings(compiled=recipe.execution.compile != "never", threads=torch.get_num_threads())
    return TrainingRun(recipe, data, Path(), Processes(device), settings)


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
                meter.finish_step(Counts(batch.num_predicted_tokens, batch.input_ids.numel()))
    base, own = (sum(parameter.numel() for parameter in run.model.parameters()) for run in runs)
    return Outcome(loss, own, own - base)
