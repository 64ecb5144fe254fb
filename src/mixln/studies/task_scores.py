"""Tasks of EleutherAI's lm-evaluation-harness as scores of a model; it is imported when it is needed."""

from __future__ import annotations

import copy
import hashlib
import json
import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stderr
from dataclasses import dataclass
from functools import cache, cached_property
from io import StringIO
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import torch
from datasets.exceptions import DatasetsError
from jinja2 import TemplateError
from torch import nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from mixln.data.hub_errors import HUB_ERRORS
from mixln.errors import InputError
from mixln.hub import hub_access
from mixln.measure.forward import model_device
from mixln.models.causal import is_causal_language_model
from mixln.placement.words import did_you_mean

if TYPE_CHECKING:
    from lm_eval.api.task import Task
    from lm_eval.tasks import TaskManager

_FEWSHOT_SEED = 1234
"""That of lm-evaluation-harness itself."""

_WRONG_TASK = (ValueError, LookupError, TypeError, AttributeError, TemplateError)
"""What lm-evaluation-harness raises, depending on what is wrong with a task."""

_CANNOT_LOAD = (*HUB_ERRORS, DatasetsError, *_WRONG_TASK, RuntimeError, ImportError)


@dataclass(frozen=True)
class LoadedTask:
    """A task with its data.

    Attributes:
        name: as given.
        metric: of the task, as lm-evaluation-harness calls it.
        filter: what answers go through before the metric; None: the task's first.
        parts: the tasks by name: one, or those of a group.
    """

    name: str
    metric: str
    filter: str | None
    parts: Mapping[str, Task]


def load_task(name: str, *, include_path: str | Path | None = None, metric: str | None = None) -> LoadedTask:
    """Load a task and its data, once for all models.

    Args:
        name: of a task or group of lm-evaluation-harness, or of one in `include_path`; a path of a YAML file too.
        include_path: folder of YAML files of tasks; a task in it needs no network if its data are local files.
        metric: such as `acc_norm`, or with a filter `exact_match,flexible-extract`; None: the task's first.

    Raises:
        InputError: lm-evaluation-harness is not installed, there is no such task or metric, or no data.
    """
    parts = _load(name, include_path)
    wanted, _, filter_name = (metric or "").partition(",")
    for part, task in parts.items():
        metrics = list(_aggregations(task))
        wanted = wanted or metrics[0]
        if wanted not in metrics:
            raise InputError(f"the task {part} has no metric {wanted!r}. It has: {', '.join(metrics)}")
        filters = [own["name"] for own in task.get_config("filter_list") or [{"name": "none"}]]
        if filter_name and filter_name not in filters:
            raise InputError(f"the task {part} has no filter {filter_name!r}. It has: {', '.join(filters)}")
        if len(parts) > 1 and not _is_mean(task, wanted):
            raise InputError(f"{name} is a group, and {wanted} is no mean over items: name one of {', '.join(parts)}")
        if task.get_config("num_fewshot") is None:
            task.set_config(key="num_fewshot", value=0)
    return LoadedTask(name, wanted, filter_name or None, parts)


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

        def written(value: Any) -> str:
            return getattr(value, "__name__", None) or type(value).__name__  # what a task's own functions are

        content = {
            name: [task.dump_config(), list(task.eval_docs)[: self.limit]] for name, task in self.task.parts.items()
        }
        key = [self.task.metric, self.task.filter, self.limit, self.batch_size, content]
        return hashlib.sha256(json.dumps(key, default=written, sort_keys=True).encode()).hexdigest()

    def check(self, model: nn.Module) -> None:
        """Make sure that a model can be scored.

        Raises:
            InputError: it is no causal language model.
        """
        if not (isinstance(model, PreTrainedModel) and is_causal_language_model(model)):
            raise InputError(
                f"the task {self.task.name} asks what comes next, and a {type(model).__name__} is no causal language "
                "model. Give one, or leave tasks out"
            )

    def __call__(self, model: nn.Module) -> float | Sequence[float]:
        """Score the model on its own device, unchanged.

        Raises:
            InputError: it is no causal language model, or the task's own templates fail on its data.
        """
        from lm_eval.evaluator import evaluate
        from lm_eval.models import huggingface

        self.check(model)
        for task in self.task.parts.values():
            task.set_fewshot_seed(_FEWSHOT_SEED)  # the same examples for every model
        with _quiet(), torch.random.fork_rng():
            torch.manual_seed(_FEWSHOT_SEED)
            # it gives the tokenizer a padding token; its registry hides the arguments from type checkers
            wrap, tokenizer = cast("Any", huggingface.HFLM), copy.deepcopy(self.tokenizer)
            wrapped = wrap(pretrained=model, backend="causal", tokenizer=tokenizer, batch_size=self.batch_size)
            wrapped._device = model_device(model)  # it would take the one of offloaded weights
            try:
                # not simple_evaluate, which besides describes the machine, for seconds, every time
                found = evaluate(wrapped, {"tasks": dict(self.task.parts)}, limit=self.limit, bootstrap_iters=0)
            except _WRONG_TASK as error:
                raise InputError(f"the task {self.task.name} cannot be run: {_reason(error)}") from error
        assert found is not None
        return self._scores(found)

    def _scores(self, found: Mapping[str, Any]) -> float | Sequence[float]:
        metric, items = self.task.metric, list[float]()
        for name, task in self.task.parts.items():
            sign = 1 if (task.higher_is_better() or {}).get(metric, True) else -1
            samples = found["samples"][name]
            chosen = self.task.filter or samples[0]["filter"]
            if not _is_mean(task, metric):
                return sign * float(found["results"][name][f"{metric},{chosen}"])
            # in the order of the items, whatever the order of their requests was
            samples = sorted(samples, key=lambda sample: sample["doc_id"])
            items += [sign * float(one[metric]) for one in samples if one["filter"] == chosen and metric in one]
        if not items:
            raise InputError(f"the task {self.task.name} gave no {metric}. Choose another metric")
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


def _load(name: str, include_path: str | Path | None) -> Mapping[str, Task]:
    try:
        from lm_eval.models import huggingface  # noqa: F401 - it needs more packages than the tasks
        from lm_eval.tasks import TaskManager
    except ImportError as error:
        raise InputError(
            f"tasks need lm-evaluation-harness, which cannot be imported ({error}). Install it: "
            "pip install 'mixln[evaluation]'"
        ) from error
    if include_path is not None and not Path(include_path).is_dir():
        raise InputError(f"there is no folder {include_path} of tasks. Give one that holds YAML files of tasks")
    manager = TaskManager(include_path=include_path, include_defaults=False)
    if name not in manager.all_tasks and not Path(name).is_file():
        manager = _all_tasks(include_path)
        if name not in manager.all_tasks:
            meant = did_you_mean(name, manager.all_tasks, most=3)
            raise InputError(
                f"there is no task {name!r} among the {len(manager.all_tasks)} of lm-evaluation-harness and of the "
                f"given folder.{meant} `lm-eval ls tasks` lists them"
            )
    try:
        with _quiet(), hub_access(name, "task"):
            return manager.load([name])["tasks"]
    except InputError:
        raise
    except _CANNOT_LOAD as error:
        raise InputError(
            f"the task {name} cannot be loaded: {_reason(error)}. Check its file and, if its data are on the hub, the "
            "network"
        ) from error


@cache
def _all_tasks(include_path: str | Path | None) -> TaskManager:
    """The harness's own tasks too: it takes seconds to read their thousands of files."""
    from lm_eval.tasks import TaskManager

    return TaskManager(include_path=include_path)


def _is_mean(task: Task, metric: str) -> bool:
    from lm_eval.api.metrics import mean

    return _aggregations(task)[metric] in (mean, np.mean)


def _aggregations(task: Task) -> Mapping[str, Any]:
    return cast("Mapping[str, Any]", task.aggregation())


def _reason(error: BaseException) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())}"


@contextmanager
def _quiet() -> Iterator[None]:
    """Without the bars and remarks that lm-evaluation-harness has for every model."""
    logger = logging.getLogger("lm_eval")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with redirect_stderr(StringIO()):
            yield
    finally:
        logger.setLevel(level)
