"""mixln's own engine."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from benchmarks.contenders import Outcome
from benchmarks.documents import Counts
from benchmarks.meter import Meter
from benchmarks.settings import Settings, pre_comes_first
from mixln.data import PreparedData
from mixln.tasks import Pretraining, Recipe
from mixln.training import Batch, decide_precision
from mixln.training.decisions import Settings as RunSettings
from mixln.training.distributed import Processes, started_processes
from mixln.training.memory import keep_freed_memory
from mixln.training.prefetch import Prefetcher
from mixln.training.run import TrainingRun


@dataclass(frozen=True)
class EngineStep:
    """One optimiser step. On a GPU its loss may still be being computed."""

    loss: Tensor
    counts: Counts
    parameters: int


def engine_steps(recipe: Recipe, data: PreparedData, processes: Processes) -> Iterator[EngineStep]:
    """Build the recipe's model and train it, as `mixln.training.train` does; yield after every step."""
    run = _start(recipe, data, processes)
    parameters = sum(parameter.numel() for parameter in run.model.parameters())
    before: EngineStep | None = None
    with Prefetcher(run.batch, processes.device) as batches:
        for step in range(recipe.last_step):
            batch = batches.get(step)
            record = run.make_step(batch)
            if before is not None:
                float(before.loss)  # read one step later, as the loop of `train` does on a GPU
            before = EngineStep(record.loss, Counts(record.weight, _slots(batch) * processes.data_count), parameters)
            yield before


def _start(recipe: Recipe, data: PreparedData, processes: Processes) -> TrainingRun:
    keep_freed_memory()
    compiled = recipe.execution.compile != "never"
    task = Pretraining(recipe, data)
    rows = recipe.rows_of_a_forward(processes.data_count)
    precision = decide_precision(recipe.precision, processes.device, task.widths(), rows * task.positions)
    settings = RunSettings(compiled, torch.get_num_threads(), precision)
    return TrainingRun(task, Path(), processes, settings)


def _slots(batch: Batch) -> int:
    return batch["input_ids"].numel()


def run(settings: Settings, data: PreparedData, meter: Meter) -> Outcome:
    """Train under `settings.placement`."""
    recipe = settings.recipe()
    last: EngineStep | None = None
    meter.begin()
    with started_processes(recipe.execution) as processes:
        for step in engine_steps(recipe, data, processes):
            meter.finish_step(step.counts)
            last = step
    return Outcome(math.nan, 0) if last is None else Outcome(float(last.loss), last.parameters)


def run_beside_pre(settings: Settings, data: PreparedData, meter: Meter) -> Outcome:
    """Train `pre` and `settings.placement` in turns, step by step on the same batches.

    The meter gets the steps of both: `pre_comes_first` says whose is whose.
    """
    meter.begin()
    runs = [
        _start(replace(settings, placement=name).recipe(), data, Processes(meter.device))
        for name in ("pre", settings.placement)
    ]
    loss = math.nan
    with Prefetcher(runs[0].batch, meter.device) as batches:
        for step in range(settings.total_steps):
            batch = batches.get(step)
            for run in runs if pre_comes_first(step) else reversed(runs):
                record = run.make_step(batch)
                loss = float(record.loss)
                meter.finish_step(Counts(record.weight, _slots(batch)))
    base, own = (sum(parameter.numel() for parameter in run.model.parameters()) for run in runs)
    return Outcome(loss, own, own - base)
