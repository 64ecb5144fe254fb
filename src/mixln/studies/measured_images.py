"""A model of images, and the images that it is measured on, as its own image processor prepares them."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import nn
from transformers.image_processing_utils import BaseImageProcessor

from mixln.data.measured_images import MeasuredImages
from mixln.errors import InputError
from mixln.measure.batches import ModelBatch
from mixln.measure.performance import ClassificationLoss, EmbeddingTurn
from mixln.models.encoding import IGNORED_TARGET
from mixln.models.inputs import is_image_classifier, require_input
from mixln.studies.diagnosis_config import DiagnosisConfig
from mixln.studies.measured import Measured
from mixln.studies.stages import ReportStage, Steps

_NAMED = 5
"""Of a list in a message; the others are counted."""


def config_of_images(config: DiagnosisConfig) -> DiagnosisConfig:
    """The config with as many images for each measure as it has tokens of text."""
    return replace(
        config,
        max_tokens=config.max_images,
        performance_tokens=config.performance_images,
        gradient_tokens=config.gradient_images,
    )


def measured_images(
    model: nn.Module,
    processor: BaseImageProcessor,
    images: MeasuredImages,
    config: DiagnosisConfig,
    report_stage: ReportStage | None = None,
) -> Measured:
    """Draw images, decode them, and prepare them for a model.

    Which images they are depends on nothing but their number: of the same source every model gets the same. The first
    so many of them are drawn from all alike, too.

    Args:
        model: of images.
        processor: of the model.
        images: to draw from.
        config: how many, and how many at once.
        report_stage: progress.

    Raises:
        InputError: the model takes no images; it is a classifier, and the images have no classes, or others; no image
            can be decoded; or the processor cannot prepare them.
    """
    require_input(model, "images")
    is_classifier = is_image_classifier(model)
    numbers = _numbers_of_classes(model, images) if is_classifier else None
    mode = "L" if getattr(getattr(model, "config", None), "num_channels", 3) == 1 else "RGB"
    dtype = next((parameter.dtype for parameter in model.parameters() if parameter.is_floating_point()), torch.float32)
    order = np.random.default_rng(0).permutation(len(images.rows)).tolist()
    faults: list[str] = []
    batches: list[ModelBatch] = []
    wanted = min(config.max_images, len(order))
    steps = Steps("preparing images", -(-wanted // config.batch_size), report_stage)
    first = 0
    for rows, decoded in _in_batches(images, order, mode, config, faults):
        arguments = _prepared(processor, decoded, model, dtype)
        labels = images.rows.labels[rows]
        targets = None if numbers is None else torch.from_numpy(np.where(labels < 0, IGNORED_TARGET, numbers[labels]))
        batches.append(ModelBatch(arguments, None, targets, torch.arange(first, first + len(rows))))
        first += len(rows)
        steps()
    if not batches:
        raise InputError(f"no image can be decoded: {'; '.join(faults[:_NAMED])}")
    performance = ClassificationLoss() if is_classifier else EmbeddingTurn()
    return Measured(model, batches, performance, config.stack, notes=_notes(faults))


def _in_batches(
    images: MeasuredImages, order: Sequence[int], mode: str, config: DiagnosisConfig, faults: list[str]
) -> Iterator[tuple[list[int], list[Any]]]:
    """Yield rows and images, until there are as many as wanted; what cannot be decoded is put down in `faults`."""
    rows: list[int] = []
    decoded: list[Any] = []
    found = 0
    for row in order:
        try:
            decoded.append(images.decoded(row, mode))
        except InputError as error:
            faults.append(str(error))
            continue
        rows.append(row)
        found += 1
        if len(rows) == config.batch_size or found == config.max_images:
            yield rows, decoded
            rows, decoded = [], []
        if found == config.max_images:
            return
    if rows:
        yield rows, decoded


def _prepared(
    processor: BaseImageProcessor, decoded: Sequence[Any], model: nn.Module, dtype: torch.dtype
) -> dict[str, torch.Tensor]:
    """The arguments of the model that a processor makes of images, in the model's precision."""
    prepare: Any = processor
    try:
        found: Mapping[str, Any] = prepare(images=list(decoded), return_tensors="pt")
    except Exception as error:  # of any processor
        reason = " ".join(str(error).split())[:200].rstrip(".")
        raise InputError(
            f"the {type(processor).__name__} cannot prepare these images ({type(error).__name__}: {reason}). Give one "
            "that makes all images of one size"
        ) from error
    taken = inspect.signature(model.forward).parameters
    arguments = {name: value for name, value in found.items() if name in taken and isinstance(value, torch.Tensor)}
    if "pixel_values" not in arguments or len(arguments["pixel_values"]) != len(decoded):
        raise InputError(
            f"the {type(processor).__name__} makes {', '.join(found) or 'nothing'} of {len(decoded)} images, and a "
            f"{type(model).__name__} takes pixel_values with a row for each. Give the processor of this model"
        )
    return {name: value.to(dtype) if value.is_floating_point() else value for name, value in arguments.items()}


def _numbers_of_classes(model: nn.Module, images: MeasuredImages) -> np.ndarray:
    """The model's number of each class of the images.

    Raises:
        InputError: the images have no classes; or the model has none, or several, of such a name.
    """
    config: Any = model.config
    names = [str(config.id2label[number]) for number in sorted(config.id2label)]
    if not images.classes:
        raise InputError(
            f"a {type(model).__name__} tells {len(names)} classes apart ({_some(names)}), and the images have none. "
            "Put each into the folder of its class"
        )
    wrong = [name for name in images.classes if names.count(name) != 1]
    if wrong:
        unnamed = all(name == f"LABEL_{number}" for number, name in enumerate(names))
        fix = (
            "Write the names of its classes into id2label of the model's config.json"
            if unnamed
            else "Rename the folders, or the names in id2label of the model's config.json"
        )
        raise InputError(
            f"the images are of {_some(images.classes)}, and a {type(model).__name__} tells {_some(names)} apart: it "
            f"has no single class of the name {_some(wrong)}. {fix}"
        )
    return np.asarray([names.index(name) for name in images.classes], np.int64)


def _some(names: Sequence[str]) -> str:
    more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
    return ", ".join(names[:_NAMED]) + more


def _notes(faults: Sequence[str]) -> list[str]:
    if not faults:
        return []
    more = f" and {len(faults) - _NAMED} more" if len(faults) > _NAMED else ""
    return [f"{len(faults)} images cannot be decoded and are left out: {'; '.join(faults[:_NAMED])}{more}."]
