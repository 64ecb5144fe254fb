"""What an estimate has to know of each kind of recipe: the sizes of its model, and the words of the result."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

import torch
from transformers import AutoModelForImageClassification

from mixln.data.image_config import ImageDataConfig
from mixln.data.images import read_images
from mixln.errors import InputError
from mixln.estimation.parameters import ParameterCount, count_blocks, count_parameters
from mixln.estimation.result import EstimateTerms
from mixln.estimation.shape import ModelShape
from mixln.tasks.image_classification import image_model_config
from mixln.tasks.image_config import ImageTrainingConfig
from mixln.tasks.kinds import IMAGES, LANGUAGE, RecipeKind
from mixln.tasks.objective import SPLIT_EVENLY, check_tensor_parallel_size, choose_attention
from mixln.tasks.recipe import Recipe

_PUBLISHED_CLASSES = {"uoft-cs/cifar10": 10, "uoft-cs/cifar100": 100}
"""Of datasets on the hub, which are not read for an estimate."""

_USUAL_CLASSES = 1000
"""Of a dataset on the hub that is not known: as many as ImageNet-1K has."""


class EstimatedKind(ABC):
    """A kind of recipes in an estimate.

    Attributes:
        kind: the recipes.
        terms: the words of the result.
    """

    kind: ClassVar[RecipeKind]
    terms: ClassVar[EstimateTerms] = EstimateTerms()

    @abstractmethod
    def shape(self, recipe: Any) -> ModelShape:
        """Return the sizes of a recipe's model."""

    @abstractmethod
    def parameters(self, recipe: Any) -> ParameterCount:
        """Count the parameters of a recipe's model."""

    @abstractmethod
    def is_explicit(self, recipe: Any, device: torch.device, *, compiled: bool) -> bool:
        """Whether the scores of attention are kept for the backward."""

    @abstractmethod
    def check_split(self, recipe: Any, size: int) -> None:
        """Make sure that so many devices can split every matrix.

        Raises:
            InputError: they cannot.
        """

    @abstractmethod
    def assumption(self, recipe: Any, shape: ModelShape) -> str:
        """Return what is assumed of the data, in words."""

    def counted_in_a_row(self, shape: ModelShape) -> int:
        """Return how many of what is counted a row has."""
        return shape.sequence


class _EstimatedLanguage(EstimatedKind):
    kind = LANGUAGE

    def shape(self, recipe: Recipe) -> ModelShape:
        return ModelShape.of(recipe)

    def parameters(self, recipe: Recipe) -> ParameterCount:
        return count_parameters(recipe)

    def is_explicit(self, recipe: Recipe, device: torch.device, *, compiled: bool) -> bool:
        return choose_attention(device, recipe.data.sequence_length, compiled=compiled) == "eager"

    def check_split(self, recipe: Recipe, size: int) -> None:
        sizes = {name: getattr(recipe.model, name) for name in SPLIT_EVENLY}
        check_tensor_parallel_size({f"model.{name}": number for name, number in sizes.items() if number}, size)

    def assumption(self, recipe: Recipe, shape: ModelShape) -> str:
        del recipe
        return f"vocabulary of {shape.vocabulary:,} tokens; all token slots count"


class _EstimatedImages(EstimatedKind):
    kind = IMAGES
    terms: ClassVar[EstimateTerms] = EstimateTerms(
        unit="images",
        one="image",
        rows="images",
        counted="images",
        embedding="positions and class token",
        other="patches, other norms",
        matrices="6 * (blocks and patches) * tokens + 6 * head",
        attention="attention, 12 * layers * width * tokens^2",
    )

    def shape(self, recipe: ImageTrainingConfig) -> ModelShape:
        model = recipe.model
        return ModelShape(
            hidden=model.hidden_size,
            intermediate=model.intermediate_size,
            layers=model.num_hidden_layers,
            heads=model.num_attention_heads,
            key_value_heads=model.num_attention_heads,
            head_size=model.hidden_size // model.num_attention_heads,
            vocabulary=_num_classes(recipe.data),
            sequence=model.positions,
            blocks=image_model_config(model, ("one", "other")).stack_plan.blocks,
            tied=False,
            predicted=1,
            is_causal=False,
            is_gated=False,
        )

    def parameters(self, recipe: ImageTrainingConfig) -> ParameterCount:
        classes = list(map(str, range(_num_classes(recipe.data))))
        with torch.device("meta"):
            model = AutoModelForImageClassification.from_config(image_model_config(recipe.model, classes))
        added = ("cls_token", "position_embeddings")
        sizes = {name: parameter.numel() for name, parameter in model.named_parameters()}
        embedding = sum(size for name, size in sizes.items() if name.endswith(added))
        head = sum(size for name, size in sizes.items() if name.startswith("classifier."))
        blocks = count_blocks(model)
        total = sum(sizes.values())
        return ParameterCount(total, embedding, head, blocks, total - embedding - head - sum(blocks))

    def is_explicit(self, recipe: ImageTrainingConfig, device: torch.device, *, compiled: bool) -> bool:
        del recipe, device, compiled  # the same kernel everywhere
        return False

    def check_split(self, recipe: ImageTrainingConfig, size: int) -> None:
        del recipe
        if size > 1:
            raise InputError(
                "a classifier of images has no plan for tensor parallelism: leave tensor_parallel_size out"
            )

    def assumption(self, recipe: ImageTrainingConfig, shape: ModelShape) -> str:
        return (
            f"{shape.vocabulary:,} classes, {shape.sequence} tokens of an image; enough of the {recipe.data.workers} "
            "processes that augment images for them never to be waited for"
        )

    def counted_in_a_row(self, shape: ModelShape) -> int:
        del shape
        return 1


def _num_classes(data: ImageDataConfig) -> int:
    """The classes of images that lie here; of a dataset on the hub, which is not read, the published number."""
    if Path(data.source).expanduser().exists():
        return len(read_images(data).classes)
    return _PUBLISHED_CLASSES.get(data.source, _USUAL_CLASSES)


ESTIMATED: Mapping[RecipeKind, EstimatedKind] = {one.kind: one for one in (_EstimatedLanguage(), _EstimatedImages())}
