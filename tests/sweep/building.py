"""Small models of a class, with weights so large that their layers matter, and what goes into them."""

from __future__ import annotations

import inspect
from typing import Any

import torch
from tests.sweep.catalogue import Entry, catalogue
from tests.sweep.reference import main_output
from tests.sweep.small_configs import IMAGE, VOCABULARY, field_names, small_config
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from torch import nn
from transformers import PreTrainedModel, PreTrainedTokenizerFast

_MOST_PARAMETERS = 4_000_000
_SPREADS = (0.2, 0.06, 0.02)


class NotBuiltError(Exception):
    """A class cannot be built small from its config alone."""


def build(entry: Entry, **fields: Any) -> PreTrainedModel:
    """A small model in float32, in evaluation mode; the same each time.

    Raises:
        NotBuiltError: with the reason.
    """
    try:
        return _build(entry, False, fields)
    except NotBuiltError:
        return _build(entry, True, fields)


def _build(entry: Entry, fill: bool, fields: dict[str, Any]) -> PreTrainedModel:
    model_class = entry.model_class
    try:
        taken = inspect.signature(model_class.forward).parameters
        config_class = model_class.config_class
    except (AttributeError, ImportError) as error:  # in place of a class that another library is missing for
        raise NotBuiltError(f"class: {_line(error)}") from error
    if not {"input_ids", "pixel_values"} & taken.keys():
        raise NotBuiltError(f"takes {', '.join(list(taken)[1:3])}: neither text nor images alone")
    try:
        if entry.family == "causal" and "is_decoder" in field_names(config_class):
            fields = {"is_decoder": True, **fields}
        if entry.family == "sequence_classification" and "pad_token_id" in field_names(config_class):
            fields = {"pad_token_id": 0, **fields}  # they look for the last token before the padding
        config = small_config(config_class, fill=fill, fields=fields)
    except Exception as error:
        raise NotBuiltError(f"config: {_line(error)}") from error
    try:
        with torch.device("meta"):
            size = sum(parameter.numel() for parameter in model_class(config).parameters())
    except Exception as error:
        raise NotBuiltError(f"model: {_line(error)}") from error
    if size > _MOST_PARAMETERS:
        raise NotBuiltError(f"still has {size:,} parameters when its config is shrunk")
    try:
        with torch.random.fork_rng():
            torch.manual_seed(0)
            model = model_class(config).eval()
    except Exception as error:
        raise NotBuiltError(f"model: {_line(error)}") from error
    for spread in _SPREADS:
        grow(model, spread)
        try:
            with torch.no_grad():
                output = model(**example(model))
        except Exception as error:
            raise NotBuiltError(f"forward pass on {', '.join(example(model))}: {_line(error)}") from error
        judged = main_output(output)
        if judged is None:
            raise NotBuiltError("gives neither logits nor hidden states")
        if judged.isfinite().all():
            return model
    raise NotBuiltError("its output is not finite with random weights")


def grow(model: nn.Module, spread: float) -> None:
    """Replace weights by random ones of this spread; the same each time."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * spread)
            else:
                parameter.add_(torch.randn(parameter.shape, generator=generator) * min(spread, 0.1))


def takes_images(model: PreTrainedModel) -> bool:
    """Whether images are the model's input, and not text."""
    taken = inspect.signature(type(model).forward).parameters
    return model.main_input_name == "pixel_values" or "input_ids" not in taken


def example(model: PreTrainedModel) -> dict[str, Any]:
    """One row of input."""
    if takes_images(model):
        return {"pixel_values": images(model)[:1]}
    ids = torch.arange(12)[None] % 200 + 50
    arguments = {"input_ids": ids}
    if model.config.is_encoder_decoder:
        arguments["decoder_input_ids"] = ids
    return arguments


LENGTHS = (12, 9)
"""Tokens of the texts that a model is diagnosed on."""


def model_rows(model: PreTrainedModel) -> list[dict[str, torch.Tensor]]:
    """What a model is run on, a row at a time."""
    if takes_images(model):
        dtype = next(parameter.dtype for parameter in model.parameters())
        return [{"pixel_values": image[None].to(dtype)} for image in images(model)]
    tokenizer = sweep_tokenizer()
    rows = [
        {"input_ids": torch.tensor([tokenizer(text(length - 1, seed))["input_ids"]])}
        for seed, length in enumerate(LENGTHS)
    ]
    if model.config.is_encoder_decoder:
        return [{**row, "decoder_input_ids": row["input_ids"]} for row in rows]
    return rows


def images(model: PreTrainedModel) -> torch.Tensor:
    """Three images, or films, of the size that the config says."""
    config: Any = model.config
    config = getattr(config, "vision_config", None) or config
    size = getattr(config, "image_size", None) or IMAGE
    height, width = (size, size) if isinstance(size, int) else tuple(size)[-2:]
    shape: tuple[int, ...] = (3, getattr(config, "num_channels", None) or 3, height, width)
    if isinstance(frames := getattr(config, "num_frames", None) or getattr(config, "frames_per_clip", None), int):
        shape = (3, frames, *shape[1:])
    return torch.randn(shape, generator=torch.Generator().manual_seed(2))


def image_classes(model: PreTrainedModel) -> torch.Tensor | None:
    """What the images show, as a classifier numbers it; None: the model is none."""
    entry = next((found for found in catalogue() if found.name == type(model).__name__), None)
    if entry is None or entry.family != "image_classification":
        return None
    config: Any = model.config
    return torch.arange(len(images(model))) % config.num_labels


def sweep_tokenizer() -> PreTrainedTokenizerFast:
    """Words w4 .. w299, each a token, behind `<s>`; nothing of mixln made it."""
    special = ["<pad>", "<s>", "</s>", "<unk>"]
    vocabulary = {word: index for index, word in enumerate([*special, *(f"w{i}" for i in range(4, VOCABULARY))])}
    backend = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    backend.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, bos_token="<s>", eos_token="</s>", pad_token="<pad>", unk_token="<unk>"
    )


def text(length: int, seed: int) -> str:
    """So many words."""
    numbers = torch.randint(4, VOCABULARY, (length,), generator=torch.Generator().manual_seed(seed))
    return " ".join(f"w{number}" for number in numbers.tolist())


def _line(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {' '.join(lines)[:160]}"
