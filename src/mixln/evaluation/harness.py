"""EleutherAI's lm-evaluation-harness: tasks loaded, and run on a model. It is imported when it is needed."""

from __future__ import annotations

import copy
import hashlib
import json
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stderr
from dataclasses import dataclass
from functools import cache
from io import StringIO
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import torch
from datasets.exceptions import DatasetsError
from jinja2 import TemplateError
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from mixln.data.hub_errors import HUB_ERRORS
from mixln.errors import InputError
from mixln.evaluation.local_tasks import is_local_task, read_local_task
from mixln.hub import hub_access
from mixln.measure.forward import model_device
from mixln.models.encoding import embedding_size, require_embedded
from mixln.placement.words import did_you_mean

if TYPE_CHECKING:
    from lm_eval.api.model import LM
    from lm_eval.api.task import Task
    from lm_eval.tasks import TaskManager

_FEWSHOT_SEED = 1234
"""That of lm-evaluation-harness itself."""

_WRONG_TASK = (ValueError, LookupError, TypeError, AttributeError, AssertionError, TemplateError)
"""What lm-evaluation-harness raises, depending on what is wrong with a task."""

_CANNOT_LOAD = (*HUB_ERRORS, DatasetsError, *_WRONG_TASK, RuntimeError, ImportError)


@dataclass(frozen=True)
class LoadedTask:
    """A task with its data.

    Attributes:
        name: as it is shown.
        metric: of the task, as lm-evaluation-harness calls it.
        filter: what answers go through before the metric; None: the task's first.
        parts: the tasks by name: one, or those of a group.
    """

    name: str
    metric: str
    filter: str | None
    parts: Mapping[str, Task]

    def digest(self, limit: int | None) -> str:
        """A hash of what it asks: its settings, and the items up to the limit of each part."""

        def written(value: Any) -> str:
            return getattr(value, "__name__", None) or type(value).__name__  # what a task's own functions are

        parts = {name: [task.dump_config(), list(task.eval_docs)[:limit]] for name, task in self.parts.items()}
        key = [self.metric, self.filter, limit, parts]
        return hashlib.sha256(json.dumps(key, default=written, sort_keys=True).encode()).hexdigest()

    def higher_is_better(self, task: Task) -> bool:
        """Whether the metric of a part is better when it is higher."""
        return (task.higher_is_better() or {}).get(self.metric, True)

    def is_mean(self, task: Task) -> bool:
        """Whether the metric of a part is a mean over items."""
        from lm_eval.api.metrics import mean

        return _aggregations(task)[self.metric] in (mean, np.mean)


@dataclass(frozen=True)
class TaskRun:
    """What a model gave on a task.

    Attributes:
        results: of lm-evaluation-harness, by the name of the part.
        samples: what it has logged of each item, by the name of the part.
        cut: items with a prompt that is longer than the model's context: the harness cuts off its beginning.
    """

    results: Mapping[str, Any]
    samples: Mapping[str, Sequence[Mapping[str, Any]]]
    cut: int


@dataclass(frozen=True)
class Prompting:
    """How items become prompts.

    Attributes:
        num_fewshot: solved items in each prompt; None: as the task says.
        apply_chat_template: write prompts as a conversation, by the tokenizer's template.
        fewshot_as_multiturn: solved items are turns of their own in it.
        system_instruction: text before everything.
    """

    num_fewshot: int | None = None
    apply_chat_template: bool = False
    fewshot_as_multiturn: bool = False
    system_instruction: str | None = None

    def __post_init__(self) -> None:
        if self.num_fewshot is not None and self.num_fewshot < 0:
            raise InputError(f"`num_fewshot` must not be negative, but is {self.num_fewshot}")
        if self.fewshot_as_multiturn and not self.apply_chat_template:
            raise InputError("`fewshot_as_multiturn` needs `apply_chat_template`")


def load_task(name: str, *, include_path: str | Path | None = None, metric: str | None = None) -> LoadedTask:
    """Load a task and its data, once for all models.

    Args:
        name: of a task or group of lm-evaluation-harness, or of one in `include_path`; a path of a YAML file; a file of
            JSON lines, or a folder with `test.jsonl` and `dev.jsonl` (`mixln.evaluation.local_tasks`).
        include_path: folder of YAML files of tasks; a task in it needs no network if its data are local files.
        metric: such as `acc_norm`, or with a filter `exact_match,flexible-extract`; None: the task's first.

    Raises:
        InputError: lm-evaluation-harness is not installed, there is no such task or metric, or no data.
    """
    _require_harness()
    if is_local_task(name):
        shown, parts = _local_parts(name)
    else:
        shown, parts = name, _known_parts(name, include_path)
    wanted, _, filter_name = (metric or "").partition(",")
    for part, task in parts.items():
        metrics = list(_aggregations(task))
        wanted = wanted or metrics[0]
        if wanted not in metrics:
            raise InputError(f"the task {part} has no metric {wanted!r}. It has: {', '.join(metrics)}")
        filters = [own["name"] for own in task.get_config("filter_list") or [{"name": "none"}]]
        if filter_name and filter_name not in filters:
            raise InputError(f"the task {part} has no filter {filter_name!r}. It has: {', '.join(filters)}")
    loaded = LoadedTask(shown, wanted, filter_name or None, parts)
    for task in parts.values():
        if len(parts) > 1 and not loaded.is_mean(task):
            raise InputError(
                f"{name} is a group, and its {wanted} is not a mean over items: name one of {', '.join(parts)}"
            )
        if task.get_config("num_fewshot") is None:
            task.set_config(key="num_fewshot", value=0)
    return loaded


def run_task(
    task: LoadedTask,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    *,
    limit: int | None = None,
    batch_size: int = 8,
    prompting: Prompting | None = None,
    report: Callable[[int, int], None] | None = None,
) -> TaskRun:
    """Run a task on a model, on the model's own device; the model and its tokenizer stay as they are.

    Args:
        task: what `load_task` gave.
        model: a causal language model.
        tokenizer: of the model.
        limit: items of each task; None: all.
        batch_size: requests that go through the model together.
        prompting: how items become prompts; None: as the task says.
        report: called with (rows so far, rows in all) while the model runs.

    Raises:
        InputError: the task's own templates fail on its data, or a chat template is asked for that is not there.
    """
    from lm_eval.models import huggingface

    prompting = prompting or Prompting()
    require_chat_template(tokenizer, prompting)
    with _quiet(), torch.random.fork_rng(), _watching(model, tokenizer, task, report):
        torch.manual_seed(_FEWSHOT_SEED)
        # it gives the tokenizer a padding token; its registry hides the arguments from type checkers
        wrap, tokenizer = cast("Any", huggingface.HFLM), copy.deepcopy(tokenizer)
        wrapped = wrap(pretrained=model, backend="causal", tokenizer=tokenizer, batch_size=batch_size)
        wrapped._device = model_device(model)  # it would take the one of offloaded weights
        given = _evaluate(task, wrapped, limit, prompting)
    samples = given["samples"]
    return TaskRun(given["results"], samples, _cut_items(samples, tokenizer, wrapped.max_length))


def rehearse_task(task: LoadedTask, *, limit: int | None = None, prompting: Prompting | None = None) -> TaskRun:
    """Run a task without a model, to see whether its templates and examples fit its data; the scores mean nothing.

    Args:
        task: what `load_task` gave.
        limit: items of each task; None: all.
        prompting: how items become prompts, but for a chat template, which is of a tokenizer.

    Raises:
        InputError: the task cannot be run.
    """
    from lm_eval.api.instance import Instance
    from lm_eval.models.dummy import DummyLM

    class Silent(DummyLM):
        """Gives every option the same likelihood, and no text."""

        def loglikelihood(self, requests: list[Instance], disable_tqdm: bool = False) -> list[tuple[float, bool]]:
            del disable_tqdm
            return [(-1.0, False) for _ in requests]

        def loglikelihood_rolling(self, requests: list[Instance], disable_tqdm: bool = False) -> list[float]:
            del disable_tqdm
            return [-1.0 for _ in requests]

        def generate_until(self, requests: list[Instance], disable_tqdm: bool = False) -> list[str]:
            del disable_tqdm
            return ["" for _ in requests]

    plain = Prompting(num_fewshot=None if prompting is None else prompting.num_fewshot)
    with _quiet():
        given = _evaluate(task, Silent(), limit, plain)
    return TaskRun(given["results"], given["samples"], 0)


def _evaluate(task: LoadedTask, model: LM, limit: int | None, prompting: Prompting) -> dict[str, Any]:
    """Run a task on a model of the harness, and leave the task as it was."""
    from lm_eval.evaluator import evaluate

    _require_examples(task, prompting.num_fewshot or 0)
    fewshots = {name: one.get_config("num_fewshot") for name, one in task.parts.items()}
    for one in task.parts.values():
        one.set_fewshot_seed(_FEWSHOT_SEED)  # the same examples for every model
        if prompting.num_fewshot is not None:
            one.set_config(key="num_fewshot", value=prompting.num_fewshot)
    try:
        # not simple_evaluate, which besides describes the machine, for seconds, every time
        found = evaluate(
            model,
            {"tasks": dict(task.parts)},
            limit=limit,
            bootstrap_iters=0,
            system_instruction=prompting.system_instruction,
            apply_chat_template=prompting.apply_chat_template,
            fewshot_as_multiturn=prompting.fewshot_as_multiturn,
        )
    except InputError:
        raise
    except _WRONG_TASK as error:
        raise InputError(f"the task {task.name} cannot be run: {_reason(error)}") from error
    finally:
        for name, number in fewshots.items():
            task.parts[name].set_config(key="num_fewshot", value=number)
    return cast("dict[str, Any]", found)  # None on other processes alone


def _require_examples(task: LoadedTask, number: int) -> None:
    """Raise InputError if a prompt cannot show so many solved items, since there are fewer."""
    for name, part in task.parts.items():
        if not number or part.get_config("output_type") != "multiple_choice":
            continue
        from_items = part.get_config("fewshot_split") in (None, part.get_config("test_split"))
        there = len(list(part.fewshot_docs() or ())) - from_items
        if number > there:
            rest = " besides the item itself" if from_items else ""
            raise InputError(f"`num_fewshot={number}`: {name} has {there} solved items{rest}. Ask for fewer")


def require_chat_template(tokenizer: PreTrainedTokenizerBase, prompting: Prompting) -> None:
    """Raise InputError if prompts are to be conversations, and the tokenizer has no template for them."""
    if prompting.apply_chat_template and not tokenizer.chat_template:
        raise InputError("the tokenizer has no chat template. Leave `apply_chat_template` out, or give the chat model")


def _cut_items(
    samples: Mapping[str, Sequence[Mapping[str, Any]]], tokenizer: PreTrainedTokenizerBase, max_length: int
) -> int:
    cut = 0
    for of_part in samples.values():
        for arguments in {sample["doc_id"]: sample["arguments"] for sample in of_part}.values():
            texts = ["".join(part for part in request if isinstance(part, str)) for request in arguments]
            # few texts are long: a token has at least a quarter of a character, since a character has up to four bytes
            if any(4 * len(text) > max_length for text in texts):
                lengths = map(len, tokenizer(texts, verbose=False)["input_ids"])
                cut += max(lengths) > max_length + 1  # the last token is predicted, not read
    return cut


@contextmanager
def _watching(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    task: LoadedTask,
    report: Callable[[int, int], None] | None,
) -> Iterator[None]:
    """Refuse tokens that a model does not have, and report its rows; the harness's own bars are for one terminal."""
    rows, embedded = 0, embedding_size(model)

    def look(_module: object, positional: tuple[Any, ...], named: dict[str, Any]) -> None:
        nonlocal rows
        ids = next(one for one in (*positional, *named.values()) if isinstance(one, torch.Tensor))
        if embedded is not None and int(ids.max()) >= embedded:
            require_embedded(ids.flatten().tolist(), model, tokenizer)
        rows += len(ids)
        if report is not None:
            report(rows, max(rows, sum(len(part.instances) for part in task.parts.values())))

    handle = model.register_forward_pre_hook(look, with_kwargs=True)
    try:
        yield
    finally:
        handle.remove()


def _require_harness() -> None:
    try:
        from lm_eval.models import huggingface  # noqa: F401 - it needs more packages than the tasks
        from lm_eval.tasks import TaskManager  # noqa: F401
    except ImportError as error:
        raise InputError(
            f"tasks need lm-evaluation-harness, which cannot be imported ({error}). Install it: "
            "pip install 'mixln[evaluation]'"
        ) from error


def _local_parts(name: str) -> tuple[str, Mapping[str, Task]]:
    """A task for each subject, so that a prompt shows solved items of its own subject."""
    from datasets import Dataset
    from lm_eval.api.task import ConfigurableTask

    local = read_local_task(name)
    parts: dict[str, Task] = {}
    with _quiet():
        for subject in dict.fromkeys(one.subject for one in local.questions):
            splits = {"test": local.of(subject, local.questions)}
            if local.examples is not None:
                splits["dev"] = local.of(subject, local.examples) or local.of(None, local.examples)
            datasets = {split: Dataset.from_list([vars(one) for one in rows]) for split, rows in splits.items()}
            part = f"{local.name}_{subject}" if subject else local.name
            parts[part] = ConfigurableTask(
                config={
                    "task": part,
                    "custom_dataset": lambda datasets=datasets, **_: datasets,
                    "test_split": "test",
                    "fewshot_split": "dev" if "dev" in splits else "test",
                    "output_type": "multiple_choice",
                    "target_delimiter": local.delimiter,
                    "description": local.description(subject),
                    "num_fewshot": 0,
                    **local.prompts,
                }
            )
    return local.name, parts


def _known_parts(name: str, include_path: str | Path | None) -> Mapping[str, Task]:
    from lm_eval.tasks import TaskManager

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
