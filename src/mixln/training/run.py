"""A training run in memory: what it is made of, and what can be done with it. `loop.py` says in which order."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map_only

from mixln.errors import InputError
from mixln.modes import autocast, evaluation_mode
from mixln.training.callback import Callback, StepRecord
from mixln.training.callbacks.faults import FaultWatch
from mixln.training.callbacks.layer_metrics import LayerMeasurements, blame_activations, layer_gradient_norms
from mixln.training.callbacks.metrics import Metrics, ReportStep
from mixln.training.callbacks.validation import Validation
from mixln.training.checkpoint import Checkpoints
from mixln.training.compilation import compile_objective, uncompiled
from mixln.training.decisions import Settings
from mixln.training.distributed import (
    Processes,
    clip_gradients,
    gathered_weights,
    gradient_exchange,
    release_gathered_weights,
    replicate,
    share_out,
)
from mixln.training.objective import Batch, Evaluation, Objective
from mixln.training.optimizer import build_optimizer, learning_rate
from mixln.training.saved_checkpoint import SavedCheckpoint
from mixln.training.task import Task

_PROCESS_STRIDE = 1_000_003
"""Between the seeds of two processes: each draws dropout of its own, and no seed of another run."""


class TrainingRun:
    """Model, optimiser, callbacks and position of a run.

    Args:
        task: what is trained.
        folder: of the run.
        processes: that share the work; all of them call every method.
        settings: see there.
        callbacks: beside those of the task and of the engine.
        report_step: progress.

    Attributes:
        objective: what is minimised.
        module: the module to call: the objective, or DDP's wrapper around it.
        step: steps made.
        weight: of all batches, as far as they count.
    """

    def __init__(
        self,
        task: Task,
        folder: Path,
        processes: Processes,
        settings: Settings,
        callbacks: Sequence[Callback] = (),
        report_step: ReportStep | None = None,
    ) -> None:
        config = task.config
        self.task, self.config = task, config
        self.folder = folder
        self.processes = processes
        self.settings = settings
        self.autocast_dtype = settings.precision.autocast_dtype
        self.objective, self.module = build_objective(task, processes, settings)
        self.optimizer = build_optimizer(config.optimizer, self.model, task.undecayed(self.model))
        self.step = 0
        self.weight = 0
        self._last_batch: Batch = {}
        lenient = config.faults.on_non_finite == "skip"
        self.validation = Validation(config.evaluation_interval, config.last_step, lenient=lenient)
        # the first verdict counts: a task may know why a step went wrong, and what to do
        self.callbacks: list[Callback] = [
            *task.callbacks(),
            *callbacks,
            FaultWatch(config.faults),
            self.validation,
            LayerMeasurements(config.layer_metrics_every),
            Metrics(config.execution.trackers, task.unit, report_step),
        ]
        names = [callback.name for callback in self.callbacks]
        if len(set(names)) < len(names):
            raise ValueError(
                f"two callbacks have the same name, so that checkpoints could not tell them apart: {names}"
            )

    @property
    def model(self) -> Any:
        """The model, without what is wrapped around it for training."""
        return self.objective.model

    def begin(self) -> None:
        """Seed dropout, set what the first batch decides about the initial weights, and begin the callbacks.

        Before the first step of a run. Checkpoints hold the random state, so that a run draws the same numbers however
        often it is interrupted.
        """
        torch.manual_seed(self.config.seed + _PROCESS_STRIDE * self.processes.data_rank)

        def forward() -> None:
            with uncompiled(), autocast(self.processes.device, self.autocast_dtype):
                self.module(**self.parts(self.to_device(self.batch(0)))[0])
            release_gathered_weights(self.module)

        self.task.adapt(self.objective, forward, self.processes.sum_over_data)
        self._begin_callbacks()

    def _begin_callbacks(self) -> None:
        for callback in self.callbacks:
            callback.begin(self)

    def batch(self, step: int) -> Batch:
        """Return this process's share of the batch of a step, from 0."""
        return self.task.batch(step, self.processes.share)

    def to_device(self, batch: Batch) -> Batch:
        """Return a batch on the run's device."""
        return tree_map_only(Tensor, lambda tensor: tensor.to(self.processes.device), batch)

    def parts(self, batch: Batch) -> list[Batch]:
        """Return a batch in micro-batches."""
        return cut(batch, self.config.micro_batch_size)

    def make_step(self, batch: Batch, weight: int | None = None) -> StepRecord:
        """Make the next step: gradients of the whole batch, clipping, update.

        The device itself leaves the update out if loss or gradient norm is not finite, or a callback does not accept
        it, so that nobody has to wait for the numbers, and the weights are those of the last good step whatever is
        decided later.

        Args:
            batch: this process's share, on the device.
            weight: of that share, if it is known.
        """
        step, config = self.step + 1, self.config
        for callback in self.callbacks:
            callback.before_step(step)
        loss, total = self._accumulate(batch, self.task.weight(batch) if weight is None else weight)
        loss = self.processes.sum_over_data(loss)
        for callback in self.callbacks:
            callback.after_backward(self, step)
        norm = clip_gradients(self.model.parameters(), config.optimizer.max_grad_norm)
        rate = learning_rate(config.optimizer, config.steps, step)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        good = torch.isfinite(loss) & torch.isfinite(norm)
        for callback in self.callbacks:
            if (accepted := callback.accepts(step, norm)) is not None:
                good = good & accepted
        # the fused optimisers' own way to be told on the device that a step is not to be made
        self.optimizer.found_inf = (~good).float()  # pyright: ignore[reportAttributeAccessIssue]
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.step, self.weight, self._last_batch = step, self.weight + total, batch
        record = StepRecord(step, loss, norm, total, {"learning_rate": rate, self.task.unit: self.weight})
        for callback in self.callbacks:
            callback.after_step(self, record, good)
        return record

    def _accumulate(self, batch: Batch, weight: int) -> tuple[Tensor, int]:
        """Return this process's part of the loss, and the weight of all parts, having added to the gradients."""
        total = int(self.processes.sum_over_data(torch.tensor(weight)))
        parts, data_count = self.parts(batch), self.processes.data_count
        return accumulate_gradients(self.module, parts, self.autocast_dtype, total, data_count), total

    def validate(self) -> Evaluation:
        """Return the task's evaluation of the model."""
        with gathered_weights(self.module):
            return evaluate(self.task, self.objective, self.processes, self.autocast_dtype)

    def description(self) -> dict[str, Any]:
        """Return what is trained, and how, as JSON."""
        return {**self.config.to_dict(), **self.task.identity(), "settings": self.settings.to_dict()}

    def rows(self, step: int) -> Sequence[int]:
        """Return the numbers of the rows in the whole batch of a step, from 1; empty: the task has none."""
        return self.task.rows(step - 1)

    def layers(self) -> list[tuple[str, nn.Parameter]]:
        """Return every parameter with the name of the layer that it is measured in."""
        return self.task.layers(self.model)

    def activations(self) -> dict[str, Tensor]:
        """Measure what goes through the layers on the batch of the last step."""
        with gathered_weights(self.module), uncompiled():
            return self.task.activations(self.objective, self._last_batch, self.autocast_dtype)

    def find_fault(self, step: int) -> str:
        """Compute a step, from 1, again, its forward without compilation, and return in words where it goes wrong."""
        batch = self.to_device(self.batch(step - 1))
        with gathered_weights(self.module), uncompiled():
            found = [
                blame_activations(
                    self.model, lambda part=part: self.task.forward(self.objective, part), self.autocast_dtype
                )
                for part in self.parts(batch)
            ]
        activation = next((name for name in found if name is not None), None)
        # what one process has seen, all must know: they go on together
        if any(self.processes.largest(activation is not None)):
            return f"seen in the output of {activation or 'a layer, on the rows of another process'}"
        self._accumulate(batch, self.task.weight(batch))
        norms = {name.split("/")[1]: float(norm) for name, norm in layer_gradient_norms(self.layers()).items()}
        self.optimizer.zero_grad()
        # the backward pass comes from the head, and spoils all that is below
        if bad := [name for name, norm in norms.items() if not math.isfinite(norm)]:
            return f"seen in the gradient of {bad[-1]}"
        largest = max(norms, key=lambda name: norms[name])
        return f"seen as a gradient of norm {norms[largest]:.4g} in {largest}, the largest"

    def save(self, checkpoints: Checkpoints) -> None:
        """Begin to write a checkpoint.

        Raises:
            InputError: it, or the one before, cannot be written.
        """
        progress = {
            "step": self.step,
            "weight": self.weight,
            "callbacks": {callback.name: callback.state() for callback in self.callbacks},
            "settings": self.settings.to_dict(),
            "processes": self.processes.count,
        }
        needed = [step for callback in self.callbacks for step in callback.needed_checkpoints()]
        for callback in self.callbacks:
            callback.flush()
        checkpoints.save(self.step, self.model, self.optimizer, progress, self._own_tensors(), needed=needed)

    def restore(self, checkpoints: Checkpoints, saved: SavedCheckpoint | None, *, rolled_back: bool = False) -> None:
        """Go to a checkpoint, or to the beginning if there is none.

        Raises:
            InputError: it is of another model.
        """
        states: dict[str, Any] = {}
        if saved is None:
            self.task.restart(self.objective)
            self.optimizer.state.clear()
            self.step = self.weight = 0
            self.begin()
        else:
            if not rolled_back:
                self._begin_callbacks()
            checkpoints.restore(saved, self.model, self.optimizer, self._own_tensors())
            states = saved.progress["callbacks"]
            if states.keys() != {callback.name for callback in self.callbacks}:
                raise InputError(
                    f"the checkpoint {saved.path} is of a run with the callbacks {', '.join(sorted(states))}, and this "
                    f"one has {', '.join(sorted(callback.name for callback in self.callbacks))}: use the same"
                )
            self.step, self.weight = int(saved.progress["step"]), int(saved.progress["weight"])
        for callback in self.callbacks:
            callback.restore(states.get(callback.name, {}), rolled_back=rolled_back)
            if rolled_back:
                callback.rewind(self)

    def take_back(self, record: StepRecord) -> None:
        """Go back to before the last step: its update was left out, so only the counters change."""
        self.step, self.weight = record.step - 1, self.weight - record.weight

    @contextmanager
    def running_callbacks(self) -> Iterator[None]:
        """Within the block, callbacks are started; every one is closed behind it, whatever happens."""
        with ExitStack() as closing:
            for callback in reversed(self.callbacks):
                closing.callback(callback.close)
            for callback in self.callbacks:
                callback.start(self)
            yield

    def _own_tensors(self) -> dict[str, Tensor]:
        return {
            f"{callback.name}.{name}": one for callback in self.callbacks for name, one in callback.tensors().items()
        }


def build_objective(task: Task, processes: Processes, settings: Settings) -> tuple[Objective, nn.Module]:
    """Return the objective of a task's model, and the module to call: the same, or DDP's wrapper around it.

    Raises:
        InputError: the model cannot be built, or cannot be shared out as the configuration wants.
    """
    device, execution = processes.device, task.config.execution
    objective = task.objective(task.build_seeded(), device, compiled=settings.compiled)
    share_out(objective, processes, execution, settings.precision.autocast_dtype)
    task.place(objective, device)
    if settings.compiled:
        compile_objective(objective)
    return objective, replicate(objective, processes, execution)


def evaluate(task: Task, objective: Objective, processes: Processes, autocast_dtype: torch.dtype | None) -> Evaluation:
    """Return a task's evaluation of a model: dropout off, uncompiled, so that anyone who opens it gets the same."""
    device = processes.device
    with evaluation_mode(objective), torch.no_grad(), autocast(device, autocast_dtype), uncompiled():
        return task.evaluate(objective, device, processes.share, processes.sum_over_data)


def accumulate_gradients(
    module: nn.Module, parts: Sequence[Batch], autocast_dtype: torch.dtype | None, weight: int, data_count: int = 1
) -> Tensor:
    """Add to the gradients those of a batch's mean loss, and return this process's part of that loss.

    The mean is over the weight of the whole batch, however it is cut into micro-batches and among processes.

    Args:
        module: maps a batch to a summed loss; DDP and FSDP average gradients over processes.
        parts: this process's share in micro-batches, on its device.
        autocast_dtype: autocast to this; None: float32 throughout.
        weight: of all processes' shares.
        data_count: the number of those processes.

    Returns:
        A scalar; its sum over the processes is the mean loss.
    """
    scale = 1 / max(1, weight)
    device = _first_tensor(parts[0]).device
    losses: list[Tensor] = []
    for number, part in enumerate(parts):
        with gradient_exchange(module, wanted=number == len(parts) - 1):
            with autocast(device, autocast_dtype):
                loss = module(**part) * scale
            (loss * data_count).backward()
        losses.append(loss.detach())
    return torch.stack(losses).sum()


def cut(batch: Batch, size: int | None) -> list[Batch]:
    """Return a batch in parts of so many rows; the last may have fewer."""
    rows = len(_first_tensor(batch))
    if size is None or size >= rows:
        return [batch]
    parts = [slice(start, start + size) for start in range(0, rows, size)]
    return [tree_map_only(Tensor, lambda tensor, part=part: tensor[part], batch) for part in parts]


def _first_tensor(batch: Batch) -> Tensor:
    return next(leaf for leaf in tree_leaves(batch) if isinstance(leaf, Tensor))
