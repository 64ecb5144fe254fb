"""Models on tasks: run, compared with constants and with each other, and kept as they are finished."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from mixln.evaluation.harness import LoadedTask, Prompting
from mixln.evaluation.items import Item
from mixln.studies.stages import ReportStage

ANSWERS_FOLDER = "answers"
"""Of a report: what each model answered on each task, so that an interrupted evaluation goes on."""

_MIN_SEEDS = 3
"""Below which a spread over seeds gets no interval."""


@dataclass(frozen=True)
class Model:
    """A model to evaluate.

    Attributes:
        name: in the report; models of one name differ by their seed.
        open: returns it and its tokenizer.
        identity: what its answers depend on: a hash of its weights; None: not known, so its answers are not kept.
    """

    name: str
    open: Callable[[], tuple[PreTrainedModel, PreTrainedTokenizerBase]]
    identity: str | None


@dataclass(frozen=True)
class _Record:
    """What is kept of a model on a task."""

    items: list[Item]
    scores: list[list[float]]
    credits: list[float]
    cut: int
    seconds: float


@dataclass
class Evaluation:
    """Models on tasks.

    Args:
        models: to evaluate.
        tasks: to evaluate them on.
        limit: items of each task; None: all.
        batch_size: requests that go through a model together.
        prompting: how items become prompts.
        folder: for the report, where the answers of finished pairs of model and task are kept; None: nowhere.
        report_stage: told how far it is.
    """

    models: Sequence[Model]
    tasks: Sequence[LoadedTask]
    limit: int | None = None
    batch_size: int = 8
    prompting: Prompting = field(default_factory=Prompting)
    folder: Path | None = None
    report_stage: ReportStage | None = None
