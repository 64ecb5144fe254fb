"""Runs of several processes for the tests; a module of its own so that spawn finds what they do."""

from __future__ import annotations

import os
import signal
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from processes import run_on_processes

from mixln.data import prepare_data
from mixln.tasks import FineTuning, Pretraining, Recipe
from mixln.training import Task, TrainingInterrupted, precision, train


@dataclass(frozen=True)
class Job:
    """A run.

    Attributes:
        recipe: of the run.
        folder: of the run.
        pretrained: folder of a model to train on; None: the recipe's, drawn anew.
        interrupt_after: the main process, which alone reports steps, gets SIGTERM after this one; None: none does.
        speedups: of bfloat16, as each process measures it on a processor that has units for it; empty: really measured.
    """

    recipe: Recipe
    folder: Path
    pretrained: Path | None = None
    interrupt_after: int | None = None
    speedups: tuple[float, ...] = ()


def run_jobs(jobs: list[Job], cache: Path, processes: int = 2) -> None:
    """Make runs one after the other, each on all of several processes; what an interrupt ends is no failure."""
    run_on_processes(_run, jobs, cache, processes=processes)


def _run(rank: int, jobs: list[Job], cache: Path) -> None:
    for job in jobs:
        with pytest.MonkeyPatch.context() as patch:
            if job.speedups:
                patch.setattr(torch.cpu, "get_capabilities", lambda: {"avx512_bf16": True})
                patch.setattr(precision, "bfloat16_speedup", lambda *_, speedup=job.speedups[rank]: speedup)
            _run_job(job, cache)


def _run_job(job: Job, cache: Path) -> None:
    def interrupt(step: int, *_: float) -> None:
        if step == job.interrupt_after:
            os.kill(os.getpid(), signal.SIGTERM)

    data = prepare_data(job.recipe.data, cache)
    pretrained = job.pretrained
    task: Task = Pretraining(job.recipe, data) if pretrained is None else FineTuning(pretrained, job.recipe, data)
    if job.interrupt_after is None:
        train(task, job.folder)
    else:
        with pytest.raises(TrainingInterrupted, match="SIGTERM"):
            train(task, job.folder, interrupt)
