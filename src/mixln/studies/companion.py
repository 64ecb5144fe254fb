"""What stands between a model and what it is measured on: a tokenizer or an image processor."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import nn
from transformers import PreTrainedModel

from mixln.models.encoding import require_tokenizer
from mixln.models.load import load_model, load_tokenizer, measured_part
from mixln.models.load_images import (
    load_image_model,
    load_image_processor,
    part_of_images,
    require_image_processor,
)


@dataclass(frozen=True)
class Companion:
    """What stands between a model and what it is measured on.

    Attributes:
        name: what it is called where it is given.
        load: opens a model with its own.
        open: opens that alone.
        part: the part of a model in memory that is measured.
        require: returns one that was given, or raises InputError.
    """

    name: str
    load: Callable[..., tuple[nn.Module, Any]]
    open: Callable[[str], Any]
    part: Callable[[PreTrainedModel], nn.Module]
    require: Callable[[Any], Any]


TOKENIZER = Companion("tokenizer", load_model, load_tokenizer, measured_part, require_tokenizer)
IMAGE_PROCESSOR = Companion(
    "image_processor", load_image_model, load_image_processor, part_of_images, require_image_processor
)
