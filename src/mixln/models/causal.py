"""Which models predict the next token, and the part of a model that is without heads."""

from __future__ import annotations

import inspect
from typing import Any

import torch
from transformers import MODEL_FOR_CAUSAL_LM_MAPPING, MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING, PreTrainedModel

from mixln.models.model_class import in_mapping

_TEXT_INPUT = "input_ids"
_ENDINGS = ("ForCausalLM", "LMHeadModel")
"""Of classes that no Auto class knows (from a folder's own code, or a subclass of the user's)."""


def is_causal_language_model(model: torch.nn.Module) -> bool:
    """Whether a Hugging Face model predicts the next token of a text; see `predicts_next_token`."""
    if not isinstance(model, PreTrainedModel):
        return type(model).__name__.endswith(_ENDINGS)
    return predicts_next_token(type(model), is_encoder_decoder=bool(model.config.is_encoder_decoder))


def predicts_next_token(model_class: type[PreTrainedModel], *, is_encoder_decoder: bool) -> bool:
    """Whether models of a class predict the next token of a text.

    That is: transformers opens the class for causal language modelling or for text from images and text (whose text
    alone is a language model's input), it generates, its input is `input_ids`, and no encoder reads the text first.
    """
    if is_encoder_decoder or model_class.main_input_name != _TEXT_INPUT or not model_class.can_generate():
        return False
    mappings = (MODEL_FOR_CAUSAL_LM_MAPPING, MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING)
    known = any(in_mapping(base, mapping) for base in model_class.__mro__ for mapping in mappings)
    return known or model_class.__name__.endswith(_ENDINGS)


def without_heads(model: torch.nn.Module) -> tuple[torch.nn.Module, str]:
    """A Hugging Face model's part that gives the hidden states, and what names in it begin with in the whole model.

    It takes the same input. A base model whose own base takes hidden states (DINOv3's encoder) is whole.
    """
    base: Any = getattr(model, "base_model", model)
    if base is model or not isinstance(base, PreTrainedModel) or not isinstance(model, PreTrainedModel):
        return model, ""
    if model.main_input_name not in inspect.signature(base.forward).parameters:
        return model, ""
    return base, next(f"{name}." for name, module in model.named_modules() if module is base)
