"""`mixln diagnose`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from mixln.commands.arguments import claim_output
from mixln.errors import InputError
from mixln.studies.diagnosis_config import MEASURE_NAMES, DiagnosisConfig

if TYPE_CHECKING:
    from mixln.report.diagnosis import ModelDiagnosis
    from mixln.studies.task_scores import LoadedTask


def diagnose(
    models: Sequence[str],
    *,
    text: str = "python",
    text_field: str = "text",
    out: Path = Path("runs/diagnose"),
    dtype: str = "auto",
    device_map: str | None = None,
    only: Annotated[Sequence[str] | None, {"names": MEASURE_NAMES}] = None,
    without: Sequence[str] | None = None,
    tasks: Sequence[str] | None = None,
    task_path: str | None = None,
    task_limit: int | None = None,
    task_metric: str | None = None,
    config: Annotated[DiagnosisConfig, {"skip": ["measures", "without"]}],
    command_line: str,
) -> None:
    """Measure what each layer of any Hugging Face model does, and what the model loses without it. Layers are counted
    from 1. Several models are measured on the same text, each with its own tokenizer, and shown side by side.

    Example:
        mixln diagnose runs/train/model --text books.jsonl.gz --out runs/diagnosis

    Args:
        models: Hugging Face folders, or names on the hub.
        text: corpus as in `mixln train`; default: the standard library's text.
        text_field: field or column of the text that holds a document.
        out: folder for the report.
        dtype: float32, bfloat16, float16, or auto: the checkpoint's.
        device_map: share a large model out over devices (auto); needs accelerate.
        only: of {names}; default: all.
        without: of the same: what to leave out, such as gradient_norm jacobian.
        tasks: of lm-evaluation-harness, such as arc_easy: their scores without each layer; needs mixln[evaluation].
        task_path: folder of YAML files of further tasks.
        task_limit: items of each task; default: all.
        task_metric: such as acc_norm; default: the first of each task.
    """
    from rich.console import Console

    from mixln.data import open_corpus
    from mixln.device import default_device
    from mixln.models.load import load_model
    from mixln.progress import StageProgress
    from mixln.report.depth_report import REPORT_FILE, layer_tables
    from mixln.report.serialize import to_json
    from mixln.storage import write_file
    from mixln.studies.diagnose import diagnose_model, make_report
    from mixln.studies.task_scores import task_score

    config = replace(config, measures=None if only is None else tuple(only), without=tuple(without or ()))
    if len(set(models)) < len(models):
        raise InputError("a model is named twice: name each once")
    loaded = load_tasks(tasks, task_path, task_limit, task_metric)
    corpus = open_corpus(text, text_field=text_field)
    page = out
    claim_output(out)
    diagnoses: list[ModelDiagnosis] = []
    console = Console()
    if (out / REPORT_FILE).exists():
        console.print(f"Replacing the report in {out}", markup=False, highlight=False, soft_wrap=True)
    texts = corpus.first(config.max_documents)
    notes = [f"Left out of {corpus.name}: {skipped}."] if (skipped := corpus.left_out.describe()) else []
    for note in notes:
        console.print(note, markup=False, highlight=False, soft_wrap=True)
    with StageProgress() as progress:
        for source, name in zip(models, display_names(models), strict=True):
            model, tokenizer = load_model(source, dtype=dtype, device=default_device(), device_map=device_map)
            scores = {
                task.name: task_score(tokenizer, task, limit=task_limit, batch_size=config.batch_size)
                for task in loaded
            }
            for score in scores.values():
                score.check(model)
            progress.start(name)

            def keep(unfinished: ModelDiagnosis) -> None:
                report = make_report([*diagnoses, unfinished], text=text, command=command_line)
                write_file(out / REPORT_FILE, to_json(report))

            found = diagnose_model(
                model,
                tokenizer,
                texts,
                config,
                name=name,
                scores=scores,
                report_stage=progress.step,
                keep=keep,
            )
            diagnoses.append(replace(found, notes=[*found.notes, *notes]))
            del model
            # what has been found so far is safe if a later model fails
            page = make_report(diagnoses, text=text, command=command_line).save(out)
    for found in diagnoses:
        for table in layer_tables(found):
            console.print(table)
        for sentence in found.findings:
            console.print(f"- {sentence}", markup=False, highlight=False)
    console.print(f"Report: {page}", highlight=False, soft_wrap=True)


def load_tasks(
    names: Sequence[str] | None, task_path: str | None, task_limit: int | None, task_metric: str | None
) -> list[LoadedTask]:
    """Return the tasks that were asked for.

    Raises:
        InputError: one cannot be had, or there is something said of tasks and none named.
    """
    from mixln.studies.task_scores import load_task

    if names is None:
        if any(value is not None for value in (task_path, task_limit, task_metric)):
            raise InputError("`task_path`, `task_limit` and `task_metric` are of tasks: name some with `tasks`")
        return []
    if len(set(names)) < len(names):
        raise InputError("a task is named twice: name each once")
    if task_limit is not None and task_limit < 1:
        raise InputError(f"`task_limit` must be at least 1, not {task_limit}")
    return [load_task(name, include_path=task_path, metric=task_metric) for name in names]


def display_names(models: Sequence[str]) -> list[str]:
    """Return short names: of folders as much of the end of their paths as tells them apart, hub names as they are."""
    names: list[str] = []
    for length in range(1, 2 + max(len(Path(model).parts) for model in models)):
        names = [_end_of_path(model, length) for model in models]
        if len(set(names)) == len(names):
            break
    return names


def _end_of_path(model: str, length: int) -> str:
    from mixln.training import MODEL_FOLDER

    path = Path(model)
    if not path.is_dir():
        return model
    parts = path.absolute().parts
    # a run keeps its model in a folder of that name, which says nothing
    return "/".join(parts[-max(length, 2 if parts[-1] == MODEL_FOLDER else 1) :])
