"""`mixln diagnose`."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal, Unpack

from mixln.announce import announce
from mixln.chosen_device import on_device
from mixln.commands.arguments import PYTHON_ONLY, claim_output
from mixln.commands.fields import DiagnosisFields
from mixln.commands.images import DEFAULT_TEXT, announce_images, require_no_images
from mixln.commands.settings import changed
from mixln.commands.start import announce_models, announce_opened, announce_tasks, announce_text
from mixln.errors import InputError
from mixln.interruption import keeping
from mixln.signatures import checked_arguments
from mixln.studies.diagnosis_config import MEASURE_NAMES, DiagnosisConfig

if TYPE_CHECKING:
    from torch import dtype as TorchType
    from torch.nn import Module
    from transformers import PreTrainedTokenizerBase
    from transformers.image_processing_utils import BaseImageProcessor

    from mixln.data.measured_images import MeasuredImages
    from mixln.evaluation.task_scores import LoadedTask
    from mixln.report.depth_report import DepthReport
    from mixln.report.diagnosis import ModelDiagnosis
    from mixln.studies.diagnosis_scores import Score
    from mixln.studies.medium import Medium


@checked_arguments
@on_device
def diagnose(
    models: Annotated[str | Path | Module | Sequence[str | Path | Module], {"as": Sequence[str]}],
    tokenizer: Annotated[PreTrainedTokenizerBase | Sequence[PreTrainedTokenizerBase] | None, PYTHON_ONLY] = None,
    texts: Annotated[Iterable[str] | None, PYTHON_ONLY] = None,
    config: Annotated[DiagnosisConfig | None, {"skip": ["measures", "without"]}] = None,
    *,
    names: Sequence[str] | None = None,
    text: str | Path = DEFAULT_TEXT,
    text_field: str = "text",
    images: Annotated[str | Path | MeasuredImages | None, {"as": str | None}] = None,
    image_split: str | None = None,
    image_column: str | None = None,
    label_column: str | None = None,
    image_processor: Annotated[BaseImageProcessor | Sequence[BaseImageProcessor] | None, PYTHON_ONLY] = None,
    out: Annotated[str | Path | None, {"default": "runs/diagnose"}] = None,
    precision: Literal["auto", "float32", "bfloat16", "float16"] = "auto",
    device: str | None = None,
    device_map: str | None = None,
    only: Annotated[Sequence[str] | None, {"names": MEASURE_NAMES}] = None,
    without: Annotated[Sequence[str] | None, {"names": MEASURE_NAMES}] = None,
    tasks: Sequence[str] | None = None,
    task_path: str | Path | None = None,
    task_limit: int | None = None,
    task_metric: str | None = None,
    scores: Annotated[Mapping[str, Score] | None, PYTHON_ONLY] = None,
    autocast_dtype: Annotated[TorchType | None, PYTHON_ONLY] = None,
    command_line: str = "",
    progress: bool = False,
    **changes: Unpack[DiagnosisFields],
) -> DepthReport:
    """Measure what each layer of any Hugging Face model does, and what the model loses without it. Layers are counted
    from 1. Several models are measured on the same text, each with its own tokenizer, and shown side by side. Models of
    images are measured on images, which their own image processors prepare; of a classifier accuracy is measured too.

    Example:
        mixln diagnose runs/train/model --text books.jsonl.gz --out runs/diagnosis

    Args:
        models: Hugging Face folders, or names on the hub. In Python one or several, models in memory too.
        tokenizer: The tokenizer of a model in memory. Of several models, one for all or a list with one for each;
            folders have their own.
        texts: The documents to measure on, one string each. Default: those of `text`.
        config: How to measure. Default: `DiagnosisConfig()`.
        names: Names of the models in the report, one for each. Default: what tells their paths apart.
        text: The text to measure on, as in `mixln train`.
        text_field: The field or column of the text that holds a document.
        images: Measure models of images, on these. A folder or tar archive with CLASS/FILE, a source to train on, whose
            test images are taken, or a dataset of the hub. Classes are known by their names.
        image_split: The split of the images to measure on. Default: test or validation, whichever there is.
        image_column: The column of images of a dataset. Default: the only one.
        label_column: The column of classes of a dataset. Default: the only one.
        image_processor: The image processor of a model in memory. Of several models, one for all or a list with one for
            each; folders have their own.
        out: The folder for the report. In Python the default is none, and `save` of the result writes it.
        precision: Compute in float32, bfloat16, float16, or auto, which is the checkpoint's.
        device: Such as cpu, cuda or cuda:1. Default: the GPU, if any.
        device_map: With auto, share a large model out over devices. This needs accelerate.
        only: Measure these alone: {names}.
        without: Do not measure these.
        tasks: Tasks of lm-evaluation-harness, such as arc_easy, whose scores are taken without each layer. This needs
            mixln[evaluation].
        task_path: A folder of YAML files of further tasks.
        task_limit: Items of each task. Default: all.
        task_metric: The metric, such as acc_norm. Default: the first one of each task.
        scores: Further measures of performance by name, each a function of the model (higher is better), called once
            for the whole model and once without each layer; see `mixln.studies.diagnose.diagnose_model`.
        autocast_dtype: Autocast to this. Default: the model's own precision.
        command_line: How it was asked for, for the report.
        progress: Show on standard error how far it is.
        **changes: Fields of `config` that differ, such as `max_tokens=4000`, `sequence_length=256`.

    Returns:
        The report: what each layer does, and its page; its table has a row for each layer of each model.

    Raises:
        InputError: a model cannot be opened or measured, the blocks are not found, the text is shorter than a window,
            or the folder cannot be written.
    """
    del device  # `on_device` has chosen it
    if both := sorted({*(only or ())} & {*(without or ())}):
        raise InputError(f"{both[0]} is in `only` and in `without`: leave it out of one of them")
    config = changed(config or DiagnosisConfig(), changes)
    config = replace(
        config,
        measures=config.measures if only is None else tuple(only),
        without=config.without if without is None else tuple(without),
    )
    announce_models(models)
    if images is not None:
        announce_images(images, texts, text, tokenizer)
        if tasks is not None:
            raise InputError("`tasks` are for language models: leave them out with `images`")
    else:
        require_no_images(
            image_processor=image_processor,
            image_split=image_split,
            image_column=image_column,
            label_column=label_column,
        )
        if texts is None:
            announce_text(text)
    _announce_tasks(tasks, task_path, task_limit, task_metric)
    announce(("folder", out))
    from mixln.evaluation.task_scores import task_score
    from mixln.progress import StageProgress
    from mixln.report.depth_report import REPORT_FILE
    from mixln.report.serialize import to_json
    from mixln.storage import write_file
    from mixln.studies.companion import IMAGE_PROCESSOR, TOKENIZER
    from mixln.studies.diagnose import make_report
    from mixln.studies.measured_models import measured_models

    companions = (tokenizer, TOKENIZER) if images is None else (image_processor, IMAGE_PROCESSOR)
    opened = measured_models(models, *companions, names=names, dtype=precision, device_map=device_map)
    loaded = load_tasks(tasks, task_path, task_metric)
    folder = None if out is None else Path(out)
    diagnoses: list[ModelDiagnosis] = []

    def kept() -> str:
        if folder is None:
            return "nothing is kept, as no folder was given"
        return f"every finished measure is kept in {folder}. Run the same command again to go on"

    with keeping(kept), StageProgress(shown=progress) as shown:
        if images is not None:
            medium = _images(images, image_column, label_column, image_split)
        else:
            medium = _texts(texts, text, text_field, config.max_documents)
        if folder is not None:
            claim_output(folder, of_run=False)
            if (folder / REPORT_FILE).exists():
                shown.report(f"Replacing the report in {folder}")
        for note in medium.notes:
            shown.report(note)
        report = make_report(diagnoses, text=medium.source, command=command_line)
        for name, open_model in opened.items():
            model, own_companion = open_model()
            announce_opened(model)
            own_scores = {
                task.name: task_score(own_companion, task, limit=task_limit, batch_size=config.batch_size)
                for task in loaded
            }
            for score in own_scores.values():
                score.check(model)
            shown.start(name)

            def keep(unfinished: ModelDiagnosis) -> None:
                if folder is not None:
                    so_far = make_report([*diagnoses, unfinished], text=medium.source, command=command_line)
                    write_file(folder / REPORT_FILE, to_json(so_far))

            found = medium.diagnose(
                model,
                own_companion,
                config,
                name=name,
                autocast_dtype=autocast_dtype,
                scores={**own_scores, **(scores or {})},
                report_stage=shown.step,
                keep=keep,
                folder=folder,
            )
            diagnoses.append(replace(found, notes=[*found.notes, *medium.notes]))
            del model
            report = make_report(diagnoses, text=medium.source, command=command_line)
            if folder is not None:  # what has been found so far is safe if a later model fails
                report.save(folder)
    return report


def _images(
    images: str | Path | MeasuredImages, image_column: str | None, label_column: str | None, image_split: str | None
) -> Medium:
    from mixln.data.image_config import ImageDataConfig
    from mixln.data.measured_images import read_measured_images
    from mixln.studies.medium import of_images

    if not isinstance(images, str | Path):
        return of_images("given in Python", images)
    config = ImageDataConfig(str(images), image_column, label_column, image_split)
    return of_images(str(images), read_measured_images(config))


def _texts(texts: Iterable[str] | None, text: str | Path, text_field: str, most: int) -> Medium:
    """The documents that are given, or else the first of a corpus, with notes on what was left out of it."""
    from mixln.data import open_corpus
    from mixln.studies.medium import of_texts

    if texts is not None:
        return of_texts("given in Python", list(islice(texts, most)))
    corpus = open_corpus(str(text), text_field=text_field)
    documents = list(corpus.first(most))
    skipped = corpus.left_out.describe()
    return of_texts(str(text), documents, [f"Left out of {corpus.name}: {skipped}."] if skipped else [])


def _announce_tasks(
    names: Sequence[str] | None, task_path: str | Path | None, task_limit: int | None, task_metric: str | None
) -> None:
    """Say which tasks there are, after making sure of what can be known of them before anything is imported.

    Raises:
        InputError: one is named twice, there is something said of tasks and none named, or their data are not to be
            had.
    """
    if names is None:
        if any(value is not None for value in (task_path, task_limit, task_metric)):
            raise InputError("`task_path`, `task_limit` and `task_metric` need tasks: name some with `tasks`")
        return
    if len(set(names)) < len(names):
        raise InputError("a task is named twice: name each once")
    if task_limit is not None and task_limit < 1:
        raise InputError(f"`task_limit` must be at least 1, not {task_limit}")
    announce_tasks(names, task_path)


def load_tasks(names: Sequence[str] | None, task_path: str | Path | None, task_metric: str | None) -> list[LoadedTask]:
    """Return the tasks that were asked for.

    Raises:
        InputError: one cannot be had.
    """
    from mixln.evaluation.task_scores import load_task

    folder = None if task_path is None else str(task_path)
    return [load_task(name, include_path=folder, metric=task_metric) for name in names or ()]
