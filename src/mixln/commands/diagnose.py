"""`mixln diagnose`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path

from jsonargparse import ArgumentParser, Namespace
from rich.console import Console

from mixln.commands.arguments import Command, add_fields, claim_output, command_parser
from mixln.data import open_corpus
from mixln.device import default_device
from mixln.errors import InputError
from mixln.files import write_file
from mixln.models.load import load_model
from mixln.progress import StageProgress
from mixln.report.diagnosis import REPORT_FILE, ModelDiagnosis
from mixln.report.diagnosis_summary import findings, layer_tables
from mixln.report.serialize import to_json
from mixln.studies.diagnose import MEASURE_NAMES, DiagnosisConfig, diagnose_model, make_report
from mixln.studies.task_scores import LoadedTask, load_task, task_score
from mixln.training.run_folder import MODEL_FOLDER


def build_parser() -> ArgumentParser:
    """Return the parser of `mixln diagnose`."""
    parser = command_parser(
        "Measure what each layer of any Hugging Face model does, and what the model loses without it. Layers are "
        "counted from 1. Several models are measured on the same text, each with its own tokenizer, and shown side by "
        "side.",
        "mixln diagnose runs/train/model --text books.jsonl.gz --out runs/diagnosis",
    )
    parser.add_argument("models", nargs="+", type=str, help="Hugging Face folders, or names on the hub")
    parser.add_argument(
        "--text", type=str, default="python", help="corpus as in `mixln train`; default: the standard library's text"
    )
    parser.add_argument("--out", type=str, default="runs/diagnose", help="folder for the report")
    parser.add_argument(
        "--dtype", type=str, default="auto", help="float32, bfloat16, float16, or auto: the checkpoint's"
    )
    parser.add_argument(
        "--device-map", type=str, default=None, help="share a large model out over devices (auto); needs accelerate"
    )
    parser.add_argument(
        "--only", nargs="+", type=str, default=None, help=f"of {', '.join(MEASURE_NAMES)}; default: all"
    )
    parser.add_argument(
        "--tasks",
        nargs="+",
        type=str,
        default=None,
        help="of lm-evaluation-harness, such as arc_easy: their scores without each layer; needs mixln[evaluation]",
    )
    parser.add_argument("--task-path", type=str, default=None, help="folder of YAML files of further tasks")
    parser.add_argument("--task-limit", type=int, default=None, help="items of each task; default: all")
    parser.add_argument(
        "--task-metric", type=str, default=None, help="such as acc_norm; default: the first of each task"
    )
    add_fields(parser, DiagnosisConfig, skip={"measures"})
    return parser


def run(given: Namespace, command: str) -> int:
    """Run `mixln diagnose`."""
    own = {field.name: given[field.name] for field in fields(DiagnosisConfig) if field.name != "measures"}
    config = DiagnosisConfig(**own, measures=None if given.only is None else tuple(given.only)).check()
    if len(set(given.models)) < len(given.models):
        raise InputError("a model is named twice: name each once")
    tasks = load_tasks(given)
    corpus = open_corpus(given.text)
    page = out = Path(given.out)
    claim_output(out)
    diagnoses: list[ModelDiagnosis] = []
    console = Console()
    if (out / REPORT_FILE).exists():
        console.print(f"Replacing the report in {out}", markup=False, highlight=False, soft_wrap=True)
    with StageProgress() as progress:
        for source, name in zip(given.models, display_names(given.models), strict=True):
            model, tokenizer = load_model(
                source, dtype=given.dtype, device=default_device(), device_map=given.device_map
            )
            scores = {
                task.name: task_score(tokenizer, task, limit=given.task_limit, batch_size=config.batch_size)
                for task in tasks
            }
            for score in scores.values():
                score.check(model)
            progress.start(name)

            def keep(unfinished: ModelDiagnosis) -> None:
                report = make_report([*diagnoses, unfinished], text=given.text, command=command)
                write_file(out / REPORT_FILE, to_json(report))

            found = diagnose_model(
                model,
                tokenizer,
                corpus.documents(),
                config,
                name=name,
                scores=scores,
                report_stage=progress.step,
                keep=keep,
            )
            diagnoses.append(found)
            del model
            # what has been found so far is safe if a later model fails
            page = make_report(diagnoses, text=given.text, command=command).save(out)
    for found in diagnoses:
        for table in layer_tables(found):
            console.print(table)
        for sentence in findings(found):
            console.print(f"- {sentence}", markup=False, highlight=False)
    console.print(f"Report: {page}", highlight=False, soft_wrap=True)
    return 0


def load_tasks(given: Namespace) -> list[LoadedTask]:
    """Return the tasks that were asked for.

    Raises:
        InputError: one cannot be had, or there is something said of tasks and none named.
    """
    if given.tasks is None:
        if any(value is not None for value in (given.task_path, given.task_limit, given.task_metric)):
            raise InputError("--task-path, --task-limit and --task-metric are of tasks: name some with --tasks")
        return []
    if len(set(given.tasks)) < len(given.tasks):
        raise InputError("a task is named twice: name each once")
    if given.task_limit is not None and given.task_limit < 1:
        raise InputError(f"--task-limit must be at least 1, not {given.task_limit}")
    return [load_task(name, include_path=given.task_path, metric=given.task_metric) for name in given.tasks]


def display_names(models: Sequence[str]) -> list[str]:
    """Return short names: of folders as much of the end of their paths as tells them apart, hub names as they are."""
    shortest = 1
    while True:
        names = [_end_of_path(model, shortest) for model in models]
        if len(set(names)) == len(names) or shortest > max(len(Path(model).parts) for model in models):
            return names
        shortest += 1


def _end_of_path(model: str, length: int) -> str:
    path = Path(model)
    if not path.is_dir():
        return model
    parts = path.absolute().parts
    # a run keeps its model in a folder of that name, which says nothing
    return "/".join(parts[-max(length, 2 if parts[-1] == MODEL_FOLDER else 1) :])


COMMAND = Command("diagnose", "which layers of a model earn their place; figures, HTML report", build_parser, run)
