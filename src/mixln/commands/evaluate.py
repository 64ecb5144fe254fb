"""`mixln evaluate`."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from mixln.commands.arguments import PYTHON_ONLY, claim_output
from mixln.errors import InputError
from mixln.signatures import checked_arguments

if TYPE_CHECKING:
    from torch.nn import Module
    from transformers import PreTrainedTokenizerBase

    from mixln.report.evaluation import EvaluationReport


@checked_arguments
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
    system_instruction: str | None = None,
    dtype: str = "auto",
    device_map: str | None = None,
    out: Annotated[str | Path | None, {"default": "runs/evaluate"}] = None,
    command_line: str = "",
    progress: bool = False,
) -> EvaluationReport:
    """Score language models on multiple-choice tasks, beside the constant answers that a score must beat, with paired
    tests over items. Tasks are those of lm-evaluation-harness, or files of your own.

    Example:
        mixln evaluate runs/pre/model runs/mix/model --tasks piqa.jsonl.gz arc_easy --out runs/scores

    Args:
        models: Hugging Face folders, or names on the hub; in Python one or several, models in memory too.
        tokenizer: of a model in memory; of several, one for all or a list with one for each. Folders have their own.
        tasks: names of tasks or groups of lm-evaluation-harness, files of JSON lines, or folders with test.jsonl and
            dev.jsonl.
        names: of the models in the report, one for each; models of one name differ by their seed.
        task_path: folder of YAML files of further tasks.
        limit: items of each task; default: all.
        batch_size: requests that go through the model together.
        num_fewshot: solved items in each prompt; default: as the task says, for files none.
        apply_chat_template: write prompts as a conversation, by the tokenizer's template.
        fewshot_as_multiturn: solved items are turns of their own in it.
        system_instruction: text before every prompt.
        dtype: float32, bfloat16, float16, or auto: the checkpoint's.
        device_map: share a large model out over devices (auto); needs accelerate.
        out: folder for the report; default in Python: none, `save` of the result writes it.
        command_line: how it was asked for, for the report.
        progress: show on standard error how far it is.

    Returns:
        The report: scores with intervals, constants, verdicts and paired tests. Its table has a row for each model on
        each task.

    Raises:
        InputError: a model or a task cannot be opened, a task does not fit a model, or the folder cannot be written.
    """
    from mixln.evaluation.harness import Prompting, load_task
    from mixln.progress import StageProgress
    from mixln.studies.evaluation import Answered, Request, answer, kept_answers, make_report
    from mixln.studies.measured_models import measured_models

    prompting = Prompting(num_fewshot, apply_chat_template, fewshot_as_multiturn, system_instruction)
    request = Request(limit, batch_size, prompting)
    opened = measured_models(models, tokenizer, dtype=dtype, device_map=device_map)
    names = list(opened) if names is None else names
    if len(names) != len(opened):
        raise InputError(f"`names` has {len(names)} entries, and there are {len(opened)} models: give one for each")
    if not tasks:
        raise InputError("`tasks` is empty: name at least one")
    folder = None if out is None else Path(out)
    if folder is not None:
        claim_output(folder)
    with StageProgress(shown=progress) as shown:
        loaded = [load_task(task, include_path=task_path) for task in tasks]
        if len({task.name for task in loaded}) < len(loaded):
            raise InputError("a task is named twice: name each once, and give files of tasks different names")
        answered: list[tuple[str, dict[str, Answered]]] = [(name, {}) for name in names]
        report = make_report(loaded, answered, prompting, command=command_line)
        for (shown_name, found), (name, open_model) in zip(answered, opened.items(), strict=True):
            model, own_tokenizer = open_model()
            shown.start(shown_name if names.count(shown_name) == 1 else name)
            kept = kept_answers(folder, model, own_tokenizer, request)
            for task in loaded:

                def report_rows(done: int, total: int, stage: str = task.name) -> None:
                    shown.step(stage, done, total)

                found[task.name] = kept.take(
                    f"{task.name} {task.digest(limit)[:16]}",
                    partial(answer, model, own_tokenizer, task, request, report_rows),
                )
                report = make_report(loaded, answered, prompting, command=command_line)
                if folder is not None:  # what is finished is safe if a later task fails
                    report.save(folder)
            del model
    return report
