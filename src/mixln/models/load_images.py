"""Opening models of images with what prepares images for them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from transformers import AutoImageProcessor, PreTrainedModel
from transformers.image_processing_utils import BaseImageProcessor

from mixln.errors import InputError
from mixln.hub import hub_access
from mixln.models.causal import without_heads
from mixln.models.inputs import is_image_classifier, require_input
from mixln.models.load import load_config, load_whole_model
from mixln.models.model_class import model_class_of
from mixln.quiet import quiet_transformers
from mixln.system_errors import exhaustion


def load_image_model(
    name_or_path: str, *, dtype: str = "auto", device: torch.device | None = None, device_map: str | None = None
) -> tuple[PreTrainedModel, BaseImageProcessor]:
    """Return a model of images with its heads, of the class that its config names, and its image processor.

    Args:
        name_or_path: Hugging Face folder, or name on the hub.
        dtype: as in `mixln.models.load.load_model`.
        device: the same.
        device_map: the same.

    Raises:
        InputError: as `mixln.models.load.load_whole_model`; it does not take images, or it has no image processor.
    """
    require_input(model_class_of(load_config(name_or_path), name_or_path), "images")
    processor = load_image_processor(name_or_path)
    return load_whole_model(name_or_path, dtype=dtype, device=device, device_map=device_map), processor


def part_of_images(model: PreTrainedModel) -> torch.nn.Module:
    """Return the part of a model of images that is measured: a classifier whole, of any other the part without heads.

    Raises:
        InputError: it does not take images.
    """
    require_input(model, "images")
    return model if is_image_classifier(model) else without_heads(model)[0]


def load_image_processor(name_or_path: str) -> BaseImageProcessor:
    """Return the image processor of a folder or of a name on the hub.

    Raises:
        InputError: there is none that can be opened, or a package is missing.
    """
    try:
        with quiet_transformers(), hub_access(name_or_path):
            return AutoImageProcessor.from_pretrained(name_or_path, trust_remote_code=False)
    except ImportError as error:
        raise InputError(
            f"preparing images for {name_or_path} needs a package ({_line(error)}): pip install 'mixln[vision]'"
        ) from error
    except Exception as error:
        if isinstance(error, InputError) or exhaustion(error) is not None:
            raise
        there = (Path(name_or_path) / "preprocessor_config.json").is_file() or not Path(name_or_path).is_dir()
        what = f"cannot be opened ({type(error).__name__}: {_line(error)})" if there else "is missing"
        raise InputError(
            f"{name_or_path}: its image processor (preprocessor_config.json) {what}. Save the one that the model was "
            "trained with there (image_processor.save_pretrained), or give the model in memory with `image_processor`"
        ) from error


def require_image_processor(processor: Any) -> BaseImageProcessor:
    """Return an image processor, after a look at whether it is one.

    Raises:
        InputError: it is None, or no image processor of transformers.
    """
    if isinstance(processor, BaseImageProcessor):
        return processor
    what = "missing" if processor is None else f"a {type(processor).__name__}"
    raise InputError(
        f"`image_processor` is {what}: give the model's own, as `AutoImageProcessor.from_pretrained` of transformers "
        "returns it"
    )


def _line(error: BaseException) -> str:
    return " ".join(str(error).split())[:200].rstrip(".")
