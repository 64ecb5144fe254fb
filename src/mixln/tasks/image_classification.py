"""Classification of images by a ViT under any placement."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import AutoModelForImageClassification, ViTImageProcessor

from mixln.confidence import accuracy_interval
from mixln.data import training_rows
from mixln.errors import InputError
from mixln.models.anatomy import find_block_stack
from mixln.models.architectures.vit import MixLNViTConfig, MixLNViTForImageClassification
from mixln.models.roles import role_matrices
from mixln.models.transformers_internals import enable_activation_checkpointing
from mixln.placement import has_residual_scales_to_profile, profile_residual_scales, set_residual_scales
from mixln.quiet import quiet_transformers
from mixln.tasks.build import materialize, naming_wrong_sizes
from mixln.tasks.image_config import ImageTrainingConfig, VisionModelConfig
from mixln.tasks.language_model import HUGGINGFACE_FOLDER
from mixln.tasks.layers import parameters_by_layer
from mixln.tasks.moving_average import MovingAverage, decay_warning
from mixln.tasks.prepared_images import PreparedImages, item_of, require_packages
from mixln.training import Callback, Precision, ReportStep, TrainedModel, train
from mixln.training.objective import Batch, Objective, Reduce, Share
from mixln.training.task import Task

_TOP = 5
_VECTORS = {"class_token", "position_embedding"}


@dataclass(frozen=True)
class ImageScores:
    """What a classifier is worth on held-out images.

    Attributes:
        loss: mean cross-entropy, in nats.
        top1: share of images whose class has the largest logit; one of several equal ones is none.
        top5: share of images whose class is among the five largest; None: there are no more than five classes.
        images: how many.
    """

    loss: float
    top1: float
    top5: float | None
    images: int

    @property
    def numbers(self) -> Mapping[str, float]:
        """Return them by name, with 95 % intervals over images (Wilson)."""
        found = {"validation_loss": self.loss}
        for name, share in (("top1", self.top1), ("top5", self.top5)):
            if share is not None:
                low, high = accuracy_interval(share, self.images)
                found |= {name: share, f"{name}_low": low, f"{name}_high": high}
        return found

    def __str__(self) -> str:
        low, high = accuracy_interval(self.top1, self.images)
        text = f"validation loss {self.loss:.4f}, top-1 {self.top1:.1%} [{low:.1%}, {high:.1%}]"
        return text if self.top5 is None else f"{text}, top-5 {self.top5:.1%}"


class ImageClassificationObjective(Objective):
    """Cross-entropy of soft targets t: - sum over images and classes of t log softmax(logits)."""

    def forward(self, images: Tensor, targets: Tensor) -> Tensor:
        """Return the summed loss, a scalar, of images (batch, 3, height, width) and targets (batch, classes)."""
        logits = self.model(pixel_values=images).logits
        return F.cross_entropy(logits.float(), targets, reduction="sum")

    def blocks(self) -> Sequence[nn.Module]:
        """Return the blocks."""
        return [*find_block_stack(self.model).layers]

    def checkpoint_activations(self) -> None:
        """Let transformers do it."""
        enable_activation_checkpointing(self.model, use_reentrant=False)


class ImageClassification(Task):
    """Telling classes of images apart, by a ViT that is drawn anew.

    Images are decoded, augmented and mixed in processes of their own, by timm and torchvision; what a step trains on is
    a function of (seed, step, row), so a run that is taken up goes on with the very same images.

    Args:
        config: of the run.
        images: to train and validate on, which several runs may share; None: those of `config.data`.

    Attributes:
        images: with the processes that make batches of them.
        data: the images that can be decoded.

    Raises:
        InputError: timm or torchvision is missing, the images are not as `read_images` wants them, all of a class are
            damaged, or the model cannot be built.
        PlacementError: there is no such placement.
    """

    unit = "images"

    def __init__(self, config: ImageTrainingConfig, images: PreparedImages | None = None) -> None:
        self.config = self.recipe = check_image_model(config)
        prepared = PreparedImages(config) if images is None else images
        self.data, self.workers = prepared.data, prepared.workers
        self.images = prepared  # whose processes end with it
        self.model_config = image_model_config(config.model, prepared.data.classes)
        self.positions = config.model.positions

    def identity(self) -> dict[str, Any]:
        """The model, the augmentation and the images."""
        return {
            "model": asdict(self.recipe.model),
            "augmentation": asdict(self.recipe.augmentation),
            "data_fingerprint": self.data.fingerprint,
            "classes": list(self.data.classes),
        }

    def warnings(self) -> list[str]:
        """What was found in the images, and an average of the weights that does not fit the length of the run."""
        decay = self.recipe.ema_decay
        warning = None if decay is None else decay_warning(decay, self.config.last_step)
        return [*self.data.notes, *([] if warning is None else [warning])]

    def callbacks(self) -> list[Callback]:
        """The average of the weights, if one is wanted."""
        config = self.recipe
        if config.ema_decay is None:
            return []
        return [MovingAverage(config.ema_decay, config.evaluation_interval, config.last_step, self.save)]

    def widths(self) -> tuple[int, int]:
        """Those of a feed-forward."""
        return self.recipe.model.hidden_size, self.recipe.model.intermediate_size

    def build(self) -> MixLNViTForImageClassification:
        """The model on the meta device, so that no process ever holds more than its part."""
        with torch.device("meta"):
            model = AutoModelForImageClassification.from_config(self.model_config, attn_implementation="sdpa")
        assert isinstance(model, MixLNViTForImageClassification)
        return model

    def objective(self, model: Any, device: torch.device, *, compiled: bool) -> ImageClassificationObjective:
        """The cross-entropy."""
        del device, compiled
        return ImageClassificationObjective(model)

    def place(self, objective: Any, device: torch.device) -> None:
        """Draw this process's part."""
        materialize(objective.model, self.config.seed, device)

    def restart(self, objective: Any) -> None:
        """Draw the same weights again."""
        objective.model.initialize(self.config.seed)

    def adapt(self, objective: Any, forward: Callable[[], object], reduce: Reduce) -> None:
        """Set the residual scales that are learned, if the placement has such (Admin)."""
        if has_residual_scales_to_profile(objective.model):
            set_residual_scales(objective.model, profile_residual_scales(objective.model, forward, reduce=reduce))

    def undecayed(self, model: Any) -> Collection[str]:
        """The class token and the positions, as timm has it: they are vectors that are added, and no matrices."""
        return {matrix.name for matrix in role_matrices(model) if {*matrix.roles} & _VECTORS}

    def rows(self, step: int) -> Any:
        """Return the images of a batch."""
        return training_rows(len(self.data.train), step, self.config.batch_size, self.config.seed)

    def batch(self, step: int, share: Share) -> Batch:
        """Return images, augmented and mixed, and their soft targets."""
        rows = self.rows(step)
        own = share.of(np.arange(len(rows)))
        seed = self.config.seed
        items = [item_of(self.data.train, row) for row in rows]
        if not self.recipe.augmentation.mixes:
            images, targets = self.workers.training(seed, step, [items[place] for place in own])
            return {"images": torch.from_numpy(images), "targets": torch.from_numpy(targets)}
        last = len(rows) - 1
        pairs = sorted({min(int(place), last - int(place)) for place in own})
        images, targets = self.workers.training(seed, step, [(items[place], items[last - place]) for place in pairs])
        # all firsts, then all seconds
        made = {place: number for number, place in enumerate([*pairs, *(last - place for place in pairs)])}
        order = [made[int(place)] for place in own]
        return {"images": torch.from_numpy(images[order]), "targets": torch.from_numpy(targets[order])}

    def weight(self, batch: Batch) -> int:
        """Return the number of images."""
        return len(batch["images"])

    def evaluate(self, objective: Any, device: torch.device, share: Share, reduce: Reduce) -> ImageScores:
        """Return loss and accuracy on all images to validate on, in batches of one size for every process."""
        images, size = self.data.test, self.config.evaluation_batch_size
        most = -(-len(images) // share.of_how_many)
        own = share.of(np.arange(len(images)))
        totals = torch.zeros(4, dtype=torch.float64)
        parts = [own[start : start + size] for start in range(0, most, size)]
        # one that has no image left computes another time on the first, as all make equally many forwards
        asked = [rows if len(rows) else own[:1] for rows in parts]
        for rows, made in zip(parts, self.images.testing(asked), strict=True):
            pixels, targets = (torch.from_numpy(part).to(device) for part in made)
            logits = objective.model(pixel_values=pixels).logits.float()[: len(rows)]
            totals += _totals(logits, targets[: len(rows)])
        loss, top1, top5, seen = reduce(totals).tolist()
        has_top5 = len(self.data.classes) > _TOP
        return ImageScores(loss / seen, top1 / seen, top5 / seen if has_top5 else None, int(seen))

    def layers(self, model: nn.Module) -> list[tuple[str, nn.Parameter]]:
        """Return the parameters by depth."""
        return parameters_by_layer(model)

    def describe(self, model: Any, folder: Path) -> None:
        """Write config and preparation of images, so that a checkpoint can be exported alone."""
        model.config.save_pretrained(folder / HUGGINGFACE_FOLDER)
        self._processor().save_pretrained(folder / HUGGINGFACE_FOLDER)

    def save(self, model: Any, weights: dict[str, Any], folder: Path) -> None:
        """Write a Hugging Face folder, which transformers' pipelines prepare images for as they were for validation."""
        with quiet_transformers():
            model.save_pretrained(folder, state_dict=weights)
        self._processor().save_pretrained(folder)

    def load(self, folder: Path, device: torch.device) -> nn.Module:
        """Open a Hugging Face folder."""
        try:
            with quiet_transformers():
                model = AutoModelForImageClassification.from_pretrained(folder, trust_remote_code=False)
        except (OSError, ValueError, SafetensorError) as error:
            raise InputError(f"the finished model {folder} is damaged ({error}). Delete it to train it anew") from error
        return nn.Module.to(model, device).eval()

    def _processor(self) -> ViTImageProcessor:
        size, augmentation = self.recipe.model.image_size, self.recipe.augmentation
        build: Any = ViTImageProcessor
        return build(
            size={"height": size, "width": size},
            image_mean=list(augmentation.mean),
            image_std=list(augmentation.std),
            resample=3,
        )


def train_image_classifier(
    config: ImageTrainingConfig,
    folder: str | Path,
    report_step: ReportStep | None = None,
    *,
    precision: Precision | None = None,
    callbacks: Sequence[Callback] = (),
) -> TrainedModel:
    """Train a classifier of images; see `mixln.training.train`.

    Args:
        config: of the run.
        folder: of the run; its `model/` will be a Hugging Face folder with the preparation of images.
        report_step: progress.
        precision: as `train`.
        callbacks: as `train`.

    Raises:
        PlacementError, InputError: as `ImageClassification`; or as `train`.
        TrainingDivergedError, TrainingInterrupted: as `train`.
    """
    with PreparedImages(check_image_model(config)) as images:
        task = ImageClassification(config, images)
        return train(task, folder, report_step, precision=precision, callbacks=callbacks)


def check_image_model(config: ImageTrainingConfig) -> ImageTrainingConfig:
    """Return the configuration if its model can be built.

    Raises:
        PlacementError, InputError: as `image_model_config`; or timm or torchvision is missing.
    """
    require_packages()
    image_model_config(config.model, ("one", "other"))  # the classes are not known yet
    return config


def image_model_config(model: VisionModelConfig, classes: Sequence[str]) -> MixLNViTConfig:
    """Return the model configuration of a classifier of images.

    Raises:
        PlacementError: the placement is not one.
        InputError: the sizes do not fit together, or the placement does not fit the number of layers.
    """
    build: Any = MixLNViTConfig
    names = dict(enumerate(classes))
    with naming_wrong_sizes():
        return build(**asdict(model), id2label=names, label2id={name: number for number, name in names.items()})


def _totals(logits: Tensor, targets: Tensor) -> Tensor:
    """Return summed loss, right answers, right answers among five, and images; equal logits are no right answer."""
    labels = targets.argmax(-1, keepdim=True)
    wanted = logits.gather(1, labels)
    # the rank of the class, where every other that is as large comes before it
    rank = (logits >= wanted).sum(-1) - 1
    loss = F.cross_entropy(logits, labels[:, 0], reduction="sum")
    counts = (loss, (rank == 0).sum(), (rank < _TOP).sum())
    return torch.tensor([*(float(count) for count in counts), float(len(logits))], dtype=torch.float64)
