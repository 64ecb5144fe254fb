"""`mixln evaluate`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from mixln.announce import announce
from mixln.chosen_device import on_device
from mixln.commands.arguments import PYTHON_ONLY, claim_output
from mixln.commands.start import announce_models, announce_opened, announce_tasks
from mixln.errors import InputError
from mixln.interruption import keeping
from mixln.signatures import checked_arguments

if TYPE_CHECKING:
    from torch.nn import Module
    from transformers import PreTrainedTokenizerBase

    from mixln.report.evaluation import EvaluationReport


@checked_arguments
@on_device
def evaluate(
    models: Annotated[str | Path | Module | Sequence[str | Path | Module], {"as": Sequence[str]}],
    tokenizer: Annotated[PreTrainedTokenizerBase | Sequence[PreTrainedTokenizerBase] | None, PYTHON_ONLY] = None,
    *,
    tasks: Sequence[str],
    names: Sequence[str] | None = None,
    task_path: str | Path | None = None,
    limit: int | None = None,
    batch_size: int = 8,
    num_fewshot: int | None = None,
    apply_chat_template: bool = False,
    fewshot_as_multiturn: bool = False,
    system_instruction: Annotated[str | None, {"metavar": "TEXT"}] = None,
    precision: Literal["auto", "float32", "bfloat16", "float16"] = "auto",
    device: str | None = None,
    device_map: str | None = None,
    out: Annotated[str | Path | None, {"default": "runs/evaluate"}] = None,
    command_line: str = "",
    progress: bool = False,
) -> EvaluationReport:
    """Score language models on multiple-choice tasks, beside the constant answers that a score must beat, with paired
    tests over items. Tasks are those of lm-evaluation-harness, or files of your own. This needs mixln[evaluation].

    Example:
        mixln evaluate runs/pre/model runs/mix/model --tasks piqa.jsonl.gz arc_easy --out runs/scores

    Args:
        models: Hugging Face folders, or names on the hub. In Python one or several, models in memory too.
        tokenizer: The tokenizer of a model in memory. Of several models, one for all or a list with one for each;
            folders have their own.
        tasks: Names of tasks or groups of lm-evaluation-harness, files of JSON lines, or folders with test.jsonl and
            dev.jsonl.
        names: Names of the models in the report, one for each. Models of one name differ by their seed.
        task_path: A folder of YAML files of further tasks.
        limit: Items of each task. Default: all.
        batch_size: Requests that go through the model together.
        num_fewshot: Solved items in each prompt. Default: what the task says, and none for files.
        apply_chat_template: Write prompts as a conversation, by the tokenizer's template.
        fewshot_as_multiturn: Show solved items as turns of their own in the conversation.
        system_instruction: A text before every prompt.
        precision: Compute in float32, bfloat16, float16, or auto, which is the checkpoint's.
        device: Such as cpu, cuda or cuda:1. Default: the GPU, if any.
        device_map: With auto, share a large model out over devices. This needs accelerate.
        out: The folder for the report. In Python the default is none, and `save` of the result writes it.
        command_line: How it was asked for, for the report.
        progress: Show on standard error how far it is.

    Returns:
        The report: scores with intervals, constants, verdicts and paired tests. Its table has a row for each model on
        each task.

    Raises:
        InputError: a model or a task cannot be opened, a task does not fit a model, or the folder cannot be written.
    """
    del device  # `on_device` has chosen it
    announce_models(models)
    announce_tasks(tasks, task_path)
    announce(("folder", out))
    from mixln.evaluation.harness import Prompting, load_task
    from mixln.progress import StageProgress
    from mixln.studies.evaluation import Request, evaluate_models
    from mixln.studies.measured_models import measured_models, require_names

    prompting = Prompting(num_fewshot, apply_chat_template, fewshot_as_multiturn, system_instruction)
    request = Request(limit, batch_size, prompting)
    opened = measured_models(models, tokenizer, dtype=precision, device_map=device_map)
    names = list(opened) if names is None else names
    require_names(names, len(opened))
    if not tasks:
        raise InputError("`tasks` is empty: name at least one")
    folder = None if out is None else Path(out)
    if folder is not None:
        claim_output(folder, of_run=False)

    def kept_so_far() -> str:
        if folder is None:
            return "nothing is kept, as no folder was given"
        return f"every finished pair of model and task is kept in {folder}. Run the same command again to go on"

    with keeping(kept_so_far), StageProgress(shown=progress) as shown:
        loaded = [load_task(task, include_path=task_path) for task in tasks]
        return evaluate_models(
            list(zip(names, opened.values(), strict=True)),
            loaded,
            request,
            folder,
            command=command_line,
            progress=shown,
            opened=announce_opened,
        )
