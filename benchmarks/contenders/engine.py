"""mixln's own engine."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch

from benchmarks.contenders import Outcome
from benchmarks.documents import Counts
from benchmarks.meter import Meter
from benchmarks.settings import Settings
from mixln.data import PreparedData, training_batch
from mixln.training import Recipe, build_model, learning_rate, resolve_precision
from mixln.training.loop import accumulate_gradients, build_optimizer


@dataclass(frozen=True)
class EngineStep:
    """One finished optimiser step."""

    loss: float
    counts: Counts
    parameters: int


def engine_steps(recipe: Recipe, data: PreparedData, device: torch.device) -> Iterator[EngineStep]:
    """Build the recipe's model and train it, as `mixln.training.train` does; yield after every step."""
    model = build_model(recipe, data.tokenizer, device)
    optimizer = build_optimizer(recipe, model)
    parameters = sum(parameter.numel() for parameter in model.parameters())
    autocast_dtype = resolve_precision(recipe, device)
    max_norm = recipe.optimizer.max_grad_norm or math.inf
    for step in range(recipe.last_step):
        batch = training_batch(data.train, step, recipe.batch_size, recipe.seed)
        loss = accumulate_gradients(model, batch, recipe.micro_batch_size, device, autocast_dtype)
        torch.nn.utils.clip_grad_norm_(model.parameters(), max_norm)
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(recipe, step + 1)
        optimizer.step()
        optimizer.zero_grad()
        yield EngineStep(loss, Counts(batch.num_predicted_tokens, batch.input_ids.numel()), parameters)


def run(settings: Settings, data: PreparedData, meter: Meter) -> Outcome:
    """Train under `settings.placement`."""
    recipe = settings.recipe()
    outcome = Outcome(math.nan, 0)
    meter.begin()
    for step in engine_steps(recipe, data, meter.device):
        meter.finish_step(step.counts)
        outcome = Outcome(step.loss, step.parameters)
    return outcome
