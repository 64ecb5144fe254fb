"""Classifiers of images in a comparison."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, ClassVar

import numpy as np
import torch

from mixln.data.image_config import AugmentationConfig
from mixln.device import default_device
from mixln.measure.batches import ModelBatch
from mixln.measure.estimates import DocumentSums
from mixln.measure.forward import autocast
from mixln.measure.performance import ClassificationError, ClassificationLoss
from mixln.modes import evaluation_mode
from mixln.report.results import ClassConstants, ValuePoint
from mixln.report.series import Estimate, FigureSpec
from mixln.report.step_results import Quantity
from mixln.report.terms import Terms
from mixln.studies.compared_kinds import Baseline, ComparedKind
from mixln.studies.measures.removal import ACCURACY_FIGURE
from mixln.studies.measuring import estimates_of
from mixln.tasks.image_classification import ImageClassification, ImageScores
from mixln.tasks.image_config import ImageTrainingConfig
from mixln.tasks.kinds import IMAGES
from mixln.tasks.prepared_images import PreparedImages
from mixln.training.objective import WHOLE

_MEASURED_IMAGES = 512
"""Validation images that the depth measures run over at most; removal costs about L/2 forward passes for each."""

_GRADIENT_IMAGES = 128
"""Of them, those that gradients at initialisation are taken on at most."""

_PROFILED_IMAGES = 32
"""Training images that a placement profiles at most."""


class _ClassFrequencies(Baseline):
    def __init__(self, images: PreparedImages) -> None:
        self._images = images
        data = images.data
        counts = np.bincount(data.train.labels, minlength=len(data.classes))
        self._losses = -np.log(counts[data.test.labels] / counts.sum())
        self._most_frequent = int(counts.argmax())
        self.constants = ClassConstants(
            class_frequencies=float(self._losses.mean()),
            most_frequent_class=data.classes[self._most_frequent],
            accuracy=float((data.test.labels == self._most_frequent).mean()),
            train_images=len(data.train),
            validation_images=len(data.test),
        )

    def over(self, model: Any, batch_size: int, autocast_dtype: torch.dtype | None) -> dict[str, Any]:
        labels = self._images.data.test.labels
        loss, error = ClassificationLoss(), ClassificationError()
        losses, right = DocumentSums(), DocumentSums()
        with evaluation_mode(model), torch.no_grad(), autocast(model, autocast_dtype):
            for batch in batches_of(self._images, np.arange(len(labels)), batch_size):
                output, rows = batch.run(model), batch.documents
                own = torch.from_numpy(self._losses)[rows]
                losses.update_tokens(loss.summed(output, batch) - own, rows)
                constant = torch.from_numpy(labels == self._most_frequent)[rows].double()
                right.update_tokens(1 - error.on(output, batch).whole - constant, rows)
        return {"over_class_frequencies": _only(losses), "over_most_frequent_class": _only(right)}


class ComparedImages(ComparedKind):
    """Classifiers of images: top-1 and top-5 beside the loss, over class frequencies."""

    kind = IMAGES
    terms: ClassVar[Terms] = Terms(
        unit="images",
        loss="nats per image",
        mean="mean over the validation images",
        documents="validation images",
        learned="learned to tell classes apart",
        constant="class frequencies",
        otherwise=", or its accuracy is above that of the most frequent class at the lower end",
        advice="Train longer.",
        column="has_learned",
        counted="Images are counted as often as they were seen.",
        has_perplexity=False,
    )
    quantities: ClassVar[Sequence[Quantity]] = (
        Quantity("top1", "share of the validation images", higher_is_better=True, label="top-1"),
        Quantity("top5", "share of the validation images", higher_is_better=True, label="top-5"),
    )
    constants_field = "class_constants"
    performance = ClassificationLoss()

    def baseline(self, data: PreparedImages) -> Baseline:
        """Count the classes of the training images."""
        return _ClassFrequencies(data)

    def first_batch(self, task: ImageClassification) -> Mapping[str, Any]:
        """The first images of training, augmented."""
        images = task.batch(0, WHOLE)["images"][:_PROFILED_IMAGES]
        return {"pixel_values": images.to(default_device())}

    def gradient_batches(self, task: ImageClassification) -> list[ModelBatch]:
        """Some of the validation images."""
        rows = _spread(len(task.data.test), _GRADIENT_IMAGES)
        return list(batches_of(task.images, rows, task.config.evaluation_batch_size))

    def measured_batches(self, task: ImageClassification) -> list[ModelBatch]:
        """Some of the validation images, of all classes."""
        rows = _spread(len(task.data.test), _MEASURED_IMAGES)
        return list(batches_of(task.images, rows, task.config.evaluation_batch_size))

    def validation_fields(self, validation: ImageScores) -> dict[str, Any]:
        """Loss, top-1 and top-5."""
        numbers = validation.numbers
        values = {
            one.name: Estimate(numbers[one.name], (numbers[f"{one.name}_low"], numbers[f"{one.name}_high"]))
            for one in self.quantities
            if one.name in numbers
        }
        return {"validation_loss": validation.loss, "perplexity": None, "values": values}

    def curve_fields(self, lines: Sequence[Mapping[str, float]]) -> dict[str, Any]:
        """Top-1 and top-5 during training."""
        curves = {
            one.name: [
                ValuePoint(int(line["step"]), int(line[IMAGES.unit]), line[one.name])
                for line in lines
                if line.get(one.name) is not None
            ]
            for one in self.quantities
        }
        return {"value_curves": {name: curve for name, curve in curves.items() if curve}}

    def data_facts(self, recipe: ImageTrainingConfig, data: PreparedImages) -> dict[str, str]:
        """Images and augmentation."""
        images = data.data
        return {
            "Training data": f"{recipe.data.source}: {len(images.train):,} images of {len(images.classes)} classes",
            "Validation data": f"{len(images.test):,} images",
            "Augmentation": _in_words(recipe.augmentation),
            "Regularisation": (
                f"weight decay {recipe.optimizer.weight_decay:g}, drop path {recipe.model.drop_path_rate:g}"
            ),
        }

    def budget(self, recipe: ImageTrainingConfig, data: PreparedImages) -> str:
        """Steps, images and epochs."""
        seen = recipe.last_step * recipe.batch_size
        epochs = seen / len(data.data.train)
        return f"{recipe.last_step:,} steps of {recipe.batch_size} = {seen:,} images a run, {epochs:.3g} epochs"

    def measured_in_words(self, data: PreparedImages) -> str:
        """Images."""
        measured, gradients = (min(most, len(data.data.test)) for most in (_MEASURED_IMAGES, _GRADIENT_IMAGES))
        return (
            f"of the trained models, on {measured:,} of the validation images, taken evenly from all classes; gradient "
            f"norms of the models that training began with, on {gradients:,} of them"
        )

    def constant_facts(self, baseline: Any) -> dict[str, str]:
        """Loss and accuracy."""
        constants = baseline.constants
        return {
            "Class frequencies": (
                f"a loss of {constants.class_frequencies:.4f} nats per image and a top-1 of {constants.accuracy:.2%} "
                f"(always {constants.most_frequent_class}) on the {constants.validation_images:,} validation images, "
                f"by counts of the {constants.train_images:,} training images"
            )
        }

    def depth_figures(self) -> list[FigureSpec]:
        """With the accuracy that each layer is worth, behind the loss."""
        figures = super().depth_figures()
        place = next(index for index, one in enumerate(figures) if one.name == "removal")
        return [*figures[: place + 1], ACCURACY_FIGURE, *figures[place + 1 :]]


def batches_of(images: PreparedImages, rows: np.ndarray, size: int) -> Iterator[ModelBatch]:
    """Yield validation images with their classes; each image is a document of its own, with the number of its row."""
    parts = [rows[first : first + size] for first in range(0, len(rows), size)]
    for part, (pixels, _) in zip(parts, images.testing(parts), strict=True):
        labels = torch.from_numpy(images.data.test.labels[part])
        yield ModelBatch({"pixel_values": torch.from_numpy(pixels)}, None, labels, torch.from_numpy(part))


def _spread(count: int, most: int) -> np.ndarray:
    """So many rows at most, spread evenly: images lie by their classes."""
    return np.linspace(0, count - 1, min(count, most)).astype(np.int64)


def _only(sums: DocumentSums) -> Estimate:
    (found,) = estimates_of(sums.estimate())
    return found


def _in_words(made: AugmentationConfig) -> str:
    parts = {
        "flip": made.flip,
        "policy": made.auto_augment,
        "colour jitter": made.color_jitter,
        "erasing": made.erasing,
        "mixup": made.mixup,
        "cutmix": made.cutmix,
        "label smoothing": made.label_smoothing,
    }
    return ", ".join([f"crop {made.crop}", *(f"{name} {value}" for name, value in parts.items() if value)])
