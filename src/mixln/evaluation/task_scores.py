"""Tasks as scores of a model, for the measures of layers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from torch import nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from mixln.errors import InputError
from mixln.evaluation.harness import LoadedTask, TaskRun, load_task, run_task
from mixln.models.causal import is_causal_language_model


@dataclass(frozen=True)
class TaskScore:
    """A task's score of a model, higher is better: one number for each item, if the metric is a mean over items.

    If lower is better, it is the negative of the metric. Any other metric (an F1 over all items, say) gives one
    number. The items of a group are those of all of its tasks.

    Attributes:
        tokenizer: of the models that will be scored.
        task: what they are to do.
        limit: items of each task; None: all.
        batch_size: requests that go through the model together.
    """

    tokenizer: PreTrainedTokenizerBase
    task: LoadedTask
    limit: int | None = None
    batch_size: int = 8

    @property
    def unit(self) -> str:
        """The metric and the task."""
        return f"{self.task.metric} of {self.task.name}"

    @cached_property
    def identity(self) -> str:
        """A hash of all that decides the score beside the model: the tasks, their items, the batch size."""
        return f"{self.task.digest(self.limit)} {self.batch_size}"

    def check(self, model: nn.Module) -> PreTrainedModel:
        """Return the model, if it can be scored.

        Raises:
            InputError: it is no causal language model.
        """
        if isinstance(model, PreTrainedModel) and is_causal_language_model(model):
            return model
        raise InputError(
            f"the task {self.task.name} needs a causal language model, and a {type(model).__name__} is not one. "
            "Give one, or leave tasks out"
        )

    def __call__(self, model: nn.Module) -> float | Sequence[float]:
        """Score the model on its own device, unchanged.

        Raises:
            InputError: it is no causal language model, or the task's own templates fail on its data.
        """
        found = run_task(self.task, self.check(model), self.tokenizer, limit=self.limit, batch_size=self.batch_size)
        return item_scores(self.task, found)


def item_scores(task: LoadedTask, found: TaskRun) -> float | list[float]:
    """Return what each item has by the task's metric, in the order of the items.

    One number, if the metric is no mean over items. Higher is better: of other metrics it is the negative.

    Raises:
        InputError: no item has the metric.
    """
    metric, items = task.metric, list[float]()
    for name, part in task.parts.items():
        sign = 1 if task.higher_is_better(part) else -1
        samples = found.samples[name]
        chosen = task.filter or samples[0]["filter"]
        if not task.is_mean(part):
            return sign * float(found.results[name][f"{metric},{chosen}"])
        # in the order of the items, whatever the order of their requests was
        ordered = sorted(samples, key=lambda sample: sample["doc_id"])
        items += [sign * float(one[metric]) for one in ordered if one["filter"] == chosen and metric in one]
    if not items:
        raise InputError(f"the task {task.name} gave no {metric}. Choose another metric")
    return items


def task_score(
    tokenizer: PreTrainedTokenizerBase,
    task: str | LoadedTask,
    *,
    include_path: str | Path | None = None,
    limit: int | None = None,
    batch_size: int = 8,
    metric: str | None = None,
) -> TaskScore:
    """A task of lm-evaluation-harness as one of the `scores` of `mixln.diagnose`.

    Args:
        tokenizer: of the model.
        task: its name, or what `load_task` gave (then `include_path` and `metric` play no part).
        include_path: as in `load_task`.
        limit: items of each task; None: all.
        batch_size: requests that go through the model together.
        metric: as in `load_task`.

    Raises:
        InputError: as `load_task`, or a number is below 1.
    """
    if batch_size < 1 or (limit is not None and limit < 1):
        raise InputError(f"a task needs at least 1 item and batches of 1: limit is {limit}, batch_size {batch_size}")
    loaded = task if isinstance(task, LoadedTask) else load_task(task, include_path=include_path, metric=metric)
    return TaskScore(tokenizer, loaded, limit, batch_size)
