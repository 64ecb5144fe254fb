"""What a model takes: text or images; and which models tell classes of images apart."""

from __future__ import annotations

import inspect
from typing import Literal

from torch import nn
from transformers import MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING

from mixln.errors import InputError
from mixln.models.model_class import in_mapping

_PIXELS = "pixel_values"
_ENDINGS = ("ForImageClassification", "ForImageClassificationWithTeacher")
"""Of classes that no Auto class knows."""


def require_input(model: nn.Module | type[nn.Module], wanted: Literal["text", "images"]) -> None:
    """Make sure that a model, or the models of a class, can be measured on text, or on images.

    Raises:
        InputError: it takes something else.
    """
    if _takes_images(model) is (wanted == "images"):
        return
    name = model.__name__ if isinstance(model, type) else type(model).__name__
    if wanted == "images":
        raise InputError(f"a {name} does not take images: measure it on text")
    raise InputError(f"a {name} takes images, not text: give images to `mixln diagnose` or `mixln prune`")


def _takes_images(model: nn.Module | type[nn.Module]) -> bool:
    main = getattr(model, "main_input_name", None)
    return _PIXELS in inspect.signature(model.forward).parameters if main is None else main == _PIXELS


def is_image_classifier(model: nn.Module) -> bool:
    """Whether a model gives a logit for each class of an image."""
    classes = type(model).__mro__
    return type(model).__name__.endswith(_ENDINGS) or any(
        in_mapping(base, MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING) for base in classes
    )
