"""A task of no library: a perceptron on synthetic images, with two callbacks. It needs no change in src."""

from __future__ import annotations

import math
import os
import signal
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from processes import run_on_processes
from torch import Tensor, nn
from torch.nn import functional as F

from mixln.training import (
    Batch,
    Callback,
    Objective,
    Share,
    StepRecord,
    Task,
    TrainingConfig,
    TrainingInterrupted,
    Verdict,
    train,
)
from mixln.training.callback import Run
from mixln.training.objective import Reduce

SIDE, CLASSES, IMAGES = 4, 3, 64


@dataclass(frozen=True)
class Accuracy:
    """What the task says of a model."""

    loss: float
    accuracy: float

    @property
    def numbers(self) -> Mapping[str, float]:
        """Return both, by name."""
        return {"validation_loss": self.loss, "accuracy": self.accuracy}


def perceptron() -> nn.Sequential:
    """Return one of two layers, the same every time."""
    with torch.random.fork_rng():
        torch.manual_seed(7)
        dropout = nn.Dropout(float(os.environ.get("TOY_DROPOUT", "0.1")))
        return nn.Sequential(nn.Flatten(), nn.Linear(SIDE * SIDE, 8), dropout, nn.ReLU(), nn.Linear(8, CLASSES))


class ImageObjective(Objective):
    """Summed cross-entropy of the class of each image."""

    def forward(self, images: Tensor, labels: Tensor) -> Tensor:
        return F.cross_entropy(self.model(images), labels, reduction="sum")

    def blocks(self) -> Sequence[nn.Module]:
        return [module for module in self.model if isinstance(module, nn.Linear)]


class Images(Task):
    """Telling three kinds of synthetic images apart."""

    unit = "images"

    def __init__(self, config: TrainingConfig) -> None:
        self.config = config
        generator = torch.Generator().manual_seed(0)
        self._labels = torch.arange(IMAGES) % CLASSES
        pattern = torch.randn(CLASSES, SIDE, SIDE, generator=generator)
        self._images = pattern[self._labels] + torch.randn(IMAGES, SIDE, SIDE, generator=generator)

    def identity(self) -> dict[str, Any]:
        return {"model": "perceptron", "images": IMAGES}

    def build(self) -> nn.Sequential:
        return perceptron()

    def objective(self, model: nn.Module, device: torch.device, *, compiled: bool) -> ImageObjective:
        del device, compiled
        return ImageObjective(model)

    def batch(self, step: int, share: Share) -> Batch:
        generator = torch.Generator().manual_seed(self.config.seed * 1000 + step)
        rows = share.of(torch.randperm(IMAGES, generator=generator)[: self.config.batch_size])
        return {"images": self._images[rows], "labels": self._labels[rows]}

    def weight(self, batch: Batch) -> int:
        return len(batch["labels"])

    def evaluate(self, objective: ImageObjective, device: torch.device, share: Share, reduce: Reduce) -> Accuracy:
        images, labels = (share.of(tensor).to(device) for tensor in (self._images, self._labels))
        loss = objective(images, labels)
        right = (objective.model(images).argmax(-1) == labels).sum()
        total = reduce(torch.tensor([float(loss), float(right)], dtype=torch.float64)) / IMAGES
        return Accuracy(*total.tolist())

    def finish(self, objective: Any) -> dict[str, Any]:
        return {"classes": CLASSES, "parameters": sum(parameter.numel() for parameter in objective.model.parameters())}


class MovingAverage(Callback):
    """Keeps an exponential moving average of the weights, of every step that counts."""

    def begin(self, run: Run) -> None:
        self.weights = {name: parameter.detach().clone() for name, parameter in run.model.named_parameters()}

    @torch.no_grad()
    def after_step(self, run: Run, record: StepRecord, good: Tensor) -> None:
        del record, good
        for name, parameter in run.model.named_parameters():
            self.weights[name].lerp_(parameter, 0.1)

    def tensors(self) -> Mapping[str, Tensor]:
        return self.weights


class Freeze(Callback):
    """Freezes the first layer after a step."""

    def __init__(self, after: int) -> None:
        self._after = after

    def identity(self) -> dict[str, Any]:
        return {"after": self._after}

    def begin(self, run: Run) -> None:
        self._layer = run.model[1]

    def before_step(self, step: int) -> None:
        self._layer.requires_grad_(step <= self._after)


class GoBackOnce(Callback):
    """Takes the run back from a step, once, and leaves that step out."""

    def __init__(self, step: int) -> None:
        self._step, self.has_gone_back = step, False

    def skips(self, step: int) -> bool:
        return self.has_gone_back and step == self._step

    def judge(self, record: StepRecord) -> Verdict | None:
        if record.step != self._step or self.has_gone_back:
            return None
        return Verdict("go_back", record.step, f"step {record.step} is not liked", before=record.step - 1)

    def learn(self, verdict: Verdict) -> None:
        del verdict
        self.has_gone_back = True

    def state(self) -> dict[str, Any]:
        return {"has_gone_back": self.has_gone_back}

    def restore(self, state: dict[str, Any], *, rolled_back: bool = False) -> None:
        if not rolled_back:
            self.has_gone_back = bool(state.get("has_gone_back", False))


@dataclass(frozen=True)
class ToyJob:
    """A run of the toy task."""

    config: TrainingConfig
    folder: Path
    interrupt_after: int | None = None


def run_toy(job: ToyJob) -> dict[str, Tensor]:
    """Make a run with both callbacks; return the moving average, {} of one that is interrupted."""
    average = MovingAverage()

    def interrupt(step: int, loss: float, _rate: float) -> None:
        assert math.isfinite(loss)
        if step == job.interrupt_after:
            os.kill(os.getpid(), signal.SIGTERM)

    try:
        train(Images(job.config), job.folder, interrupt, callbacks=[average, GoBackOnce(9)])
    except TrainingInterrupted:
        return {}
    return {name: getattr(one, "full_tensor", lambda one=one: one)() for name, one in average.weights.items()}


def run_toys(jobs: list[ToyJob], processes: int = 2) -> None:
    """Make runs on several processes; each leaves its moving average beside its folder, unless it is interrupted."""
    run_on_processes(_run, jobs, processes=processes)


def _run(rank: int, jobs: list[ToyJob]) -> None:
    for job in jobs:
        average = run_toy(job)
        if average and rank == 0:
            torch.save(average, job.folder.with_suffix(".pt"))
