"""A training run in memory: what it is made of, and what can be done with it. `loop.py` says in which order."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from mixln.data import Batch, PreparedData, training_rows
from mixln.depth import EvaluationLoss
from mixln.errors import InputError
from mixln.training.build import build_optimizer
from mixln.training.checkpoint import Checkpoints, SavedCheckpoint
from mixln.training.compilation import compile_objective, uncompiled
from mixln.training.config import Recipe
from mixln.training.distributed import (
    Processes,
    clip_gradients,
    gathered_weights,
    gradient_exchange,
    release_gathered_weights,
    replicate,
    share_out,
)
from mixln.training.faults import Fault, FaultWatch
from mixln.training.layer_metrics import (
    blame_activations,
    layer_activations,
    layer_gradient_norms,
    layer_update_ratios,
)
from mixln.training.model_source import FreshModel, ModelSource
from mixln.training.objective import CausalLanguageModelObjective, attention_of, choose_attention
from mixln.training.precision import autocast, resolve_precision
from mixln.training.schedule import learning_rate
from mixln.training.validation import validate

FAULTS_FILE = "faults.jsonl"

_ROWS_NAMED = 4

_PROCESS_STRIDE = 1_000_003
"""Between the seeds of two processes: each draws dropout of its own, and no seed of another run."""


@dataclass(frozen=True)
class Settings:
    """What is decided once, when a run begins, since rounding depends on it.

    Attributes:
        compiled: whether the model is compiled.
        threads: the number of PyTorch's threads.
    """

    compiled: bool
    threads: int


@dataclass
class StepRecord:
    """The numbers of one step. On a GPU they are still being computed when the step returns.

    Attributes:
        step: from 1.
        loss: nats per predicted token, over the batches of all processes; a scalar.
        gradient_norm: before clipping; a scalar.
        largest_norm: the norm from which on the step counted as a spike.
        values: what else goes into the metrics.
        layers: measurements by layer, scalars.
    """

    step: int
    loss: Tensor
    gradient_norm: Tensor
    largest_norm: float
    values: dict[str, float]
    layers: dict[str, Tensor] = field(default_factory=dict)


class TrainingRun:
    """Model, optimiser and position of a run.

    Args:
        recipe: of the run.
        data: to train and validate on.
        folder: of the run.
        processes: that share the work; all of them call every method.
        settings: see there.
        source: of the model; None: drawn by the recipe.
    """

    def __init__(
        self,
        recipe: Recipe,
        data: PreparedData,
        folder: Path,
        processes: Processes,
        settings: Settings,
        source: ModelSource | None = None,
    ) -> None:
        self.recipe = recipe
        self.data = data
        self.folder = folder
        self.processes = processes
        self.settings = settings
        self.source = source or FreshModel(recipe, data.tokenizer)
        self.objective, self.module = build_objective(self.source, recipe, processes, compiled=settings.compiled)
        self.optimizer = build_optimizer(recipe, self.model)
        self.watch = FaultWatch(recipe.faults)
        self.autocast_dtype = resolve_precision(recipe, processes.device)
        self.step = 0
        self.tokens = 0

    @property
    def model(self) -> PreTrainedModel:
        """The model, without what is wrapped around it for training."""
        return self.objective.model

    def begin(self) -> None:
        """Seed dropout, and set what the first batch decides about the initial weights; before the first step of a run.

        Checkpoints hold the random state, so that a run draws the same numbers however often it is interrupted.
        """
        torch.manual_seed(self.recipe.seed + _PROCESS_STRIDE * self.processes.data_rank)

        def forward() -> None:
            batch = cut(self.batch(0).to(self.processes.device), self.recipe.micro_batch_size)[0]
            with (
                uncompiled(),
                attention_of(self.objective, "sdpa"),
                autocast(self.processes.device, self.autocast_dtype),
            ):
                self.module(batch.input_ids, batch.position_ids, batch.targets)
            release_gathered_weights(self.module)

        self.source.profile(self.model, forward, self.processes.sum_over_data)

    def batch(self, step: int) -> Batch:
        """Return this process's rows of the batch of a step, from 0."""
        return self.data.train.batch(self.processes.own_rows(self._rows(step)))

    def make_step(self, batch: Batch) -> StepRecord:
        """Make the next step: gradients of the whole batch, clipping, update.

        The device itself leaves the update out if loss or gradient norm is not finite or the norm is a spike, so that
        nobody has to wait for the numbers, and the weights are those of the last good step whatever is decided later.
        """
        recipe, step = self.recipe, self.step + 1
        self.source.intervention.before_step(step)
        measured = recipe.layer_metrics_every > 0 and step % recipe.layer_metrics_every == 0
        loss, num_tokens = self._accumulate(batch)
        loss = self.processes.sum_over_data(loss)
        layers = layer_gradient_norms(self.model) if measured else {}
        norm = clip_gradients(self.model.parameters(), recipe.optimizer.max_grad_norm)
        largest_norm = self.watch.largest_norm
        rate = learning_rate(recipe, step)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        good = torch.isfinite(loss) & torch.isfinite(norm) & (norm <= largest_norm)
        self.source.intervention.after_step(good, self.processes.sum_over_data)
        # the fused optimisers' own way to be told on the device that a step is not to be made
        self.optimizer.found_inf = (~good).float()  # pyright: ignore[reportAttributeAccessIssue]
        self.optimizer.step()
        self.optimizer.zero_grad()
        if measured:
            layers |= layer_update_ratios(self.model, self.optimizer)
            with gathered_weights(self.module):
                layers |= layer_activations(self.model, batch, self.autocast_dtype)
        self.step, self.tokens = step, self.tokens + num_tokens
        values = {"learning_rate": rate, "tokens": self.tokens, "step_tokens": num_tokens}
        values |= self.source.intervention.values()
        return StepRecord(step, loss, norm, largest_norm, values, layers)

    def validate(self) -> EvaluationLoss:
        """Return the validation loss."""
        return validate(self.module, self.objective, self.recipe, self.data.validation, self.processes)

    def state(self) -> dict[str, Any]:
        """Return what a checkpoint holds beside weights, optimiser and random state, as JSON."""
        return {
            "step": self.step,
            "tokens": self.tokens,
            "watch": self.watch.state(),
            "intervention": self.source.intervention.state(),
            "settings": {"compiled": self.settings.compiled, "threads": self.settings.threads},
            "processes": self.processes.count,
        }

    def save(self, checkpoints: Checkpoints) -> None:
        """Begin to write a checkpoint.

        Raises:
            InputError: it, or the one before, cannot be written.
        """
        needed = self.source.intervention.needed_checkpoints()
        checkpoints.save(self.step, self.model, self.optimizer, self.state(), needed=needed)

    def restore(self, checkpoints: Checkpoints, saved: SavedCheckpoint | None, *, rolled_back: bool = False) -> None:
        """Go to a checkpoint, or to the beginning if there is none.

        Raises:
            InputError: it is of another model.
        """
        if saved is None:
            self.source.restart(self.model)
            self.begin()
            self.optimizer.state.clear()
            progress = {"step": 0, "tokens": 0, "watch": FaultWatch(self.recipe.faults).state()}
        else:
            checkpoints.restore(saved, self.model, self.optimizer)
            progress = saved.progress
        self.step, self.tokens = int(progress["step"]), int(progress["tokens"])
        self.watch.restore(progress["watch"], rolled_back=rolled_back)
        # a checkpoint of an older version has none
        self.source.intervention.restore(progress.get("intervention", {}), rolled_back=rolled_back)

    def take_back(self, record: StepRecord, fault: Fault) -> None:
        """Go back to before the last step, which went wrong: its update was left out, so only the counters change."""
        self.step = fault.step - 1
        self.tokens -= int(record.values["step_tokens"])
        self.watch.forget()

    def explain(self, fault: Fault) -> str:
        """Return a sentence on a fault, with step, rows and the layer where it began, and note it in `faults.jsonl`.

        The step is computed again to find the layer, its forward without compilation.

        Raises:
            InputError: the disk is full.
        """
        rows = self._rows(fault.step - 1)
        where = self._find_layer(self.batch(fault.step - 1).to(self.processes.device))
        named = ", ".join(map(str, rows[:_ROWS_NAMED])) + (", ..." if len(rows) > _ROWS_NAMED else "")
        if self.processes.is_main:
            line = {"step": fault.step, "what": fault.what, "action": fault.action, "where": where}
            self._note({**line, "rows": rows.tolist()})
        return f"{fault.what} in step {fault.step} (training rows {named}), first {where}"

    def _note(self, line: dict[str, Any]) -> None:
        path = self.folder / FAULTS_FILE
        try:
            with path.open("a", encoding="utf-8") as file:
                file.write(json.dumps(line) + "\n")
        except OSError as error:
            raise InputError(
                f"cannot write {path}: {error.strerror or error}. Make room, and run the same command again: it goes "
                "on from the last checkpoint"
            ) from error

    def _find_layer(self, batch: Batch) -> str:
        parts = cut(batch, self.recipe.micro_batch_size)
        with gathered_weights(self.module):
            found = [blame_activations(self.model, part, self.autocast_dtype) for part in parts]
        activation = next((name for name in found if name is not None), None)
        # what one process has seen, all must know: they go on together
        if self.processes.largest(int(activation is not None)):
            return f"seen in the output of {activation or 'a layer, on the rows of another process'}"
        self._accumulate(batch)
        norms = {name.split("/")[1]: float(norm) for name, norm in layer_gradient_norms(self.model).items()}
        self.optimizer.zero_grad()
        # the backward pass comes from the head, and spoils all that is below
        if bad := [name for name, norm in norms.items() if not math.isfinite(norm)]:
            return f"seen in the gradient of {bad[-1]}"
        largest = max(norms, key=lambda name: norms[name])
        return f"seen as a gradient of norm {norms[largest]:.4g} in {largest}, the largest"

    def _accumulate(self, batch: Batch) -> tuple[Tensor, int]:
        """Return this process's part of the loss, and the predicted tokens of all, having added to the gradients."""
        num_tokens = int(self.processes.sum_over_data(torch.tensor(batch.num_predicted_tokens)))
        micro_batch_size, data_count = self.recipe.micro_batch_size, self.processes.data_count
        loss = accumulate_gradients(self.module, batch, micro_batch_size, self.autocast_dtype, num_tokens, data_count)
        return loss, num_tokens

    def _rows(self, step: int) -> Any:
        return training_rows(len(self.data.train), step, self.recipe.batch_size, self.recipe.seed)


def build_objective(
    source: ModelSource, recipe: Recipe, processes: Processes, *, compiled: bool
) -> tuple[CausalLanguageModelObjective, nn.Module]:
    """Return the training objective of a source's model, and the module to call: the same, or DDP's wrapper around it.

    Raises:
        InputError: the model cannot be built, or cannot be shared out as the recipe wants.
    """
    device = processes.device
    attention = choose_attention(device, recipe.data.sequence_length, compiled=compiled)
    objective = source.wrap(source.build(), attention)
    share_out(objective, processes, recipe.execution, resolve_precision(recipe, device))
    source.place(objective.model, device)
    if compiled:
        compile_objective(objective)
    return objective, replicate(objective, processes, recipe.execution)


def accumulate_gradients(
    module: nn.Module,
    batch: Batch,
    micro_batch_size: int | None,
    autocast_dtype: torch.dtype | None,
    num_tokens: int,
    data_count: int = 1,
) -> Tensor:
    """Add to the gradients those of a batch's mean loss, and return this process's part of that loss.

    The mean is over `num_tokens`, the predicted tokens of the whole batch, however it is cut into micro-batches and
    among processes.

    Args:
        module: maps (input_ids, position_ids, targets) to a summed loss; DDP and FSDP average gradients over processes.
        batch: this process's rows, on its device.
        micro_batch_size: rows for one forward and backward; None: all.
        autocast_dtype: see `resolve_precision`.
        num_tokens: predicted tokens of all processes' rows.
        data_count: the number of those processes.

    Returns:
        A scalar; its sum over the processes is the loss in nats per predicted token.
    """
    parts = cut(batch, micro_batch_size)
    scale = 1 / max(1, num_tokens)
    losses: list[Tensor] = []
    for number, part in enumerate(parts):
        with gradient_exchange(module, wanted=number == len(parts) - 1):
            with autocast(batch.input_ids.device, autocast_dtype):
                loss = module(part.input_ids, part.position_ids, part.targets) * scale
            (loss * data_count).backward()
        losses.append(loss.detach())
    return torch.stack(losses).sum()


def cut(batch: Batch, size: int | None) -> list[Batch]:
    """Return a batch in parts of so many rows; the last may have fewer."""
    rows = batch.input_ids.shape[0]
    size = size or rows
    parts = [slice(start, start + size) for start in range(0, rows, size)]
    return [Batch(batch.input_ids[part], batch.targets[part], batch.position_ids[part]) for part in parts]
