"""Mistral under any placement: Llama with a window of attention, which recipes leave open."""

from collections.abc import Mapping
from typing import Any, ClassVar

from huggingface_hub.dataclasses import strict
from transformers import MistralConfig, MistralForCausalLM, MistralForSequenceClassification, MistralModel

from mixln.models.decoder import PlacedForCausalLM, PlacedForSequenceClassification, PlacedModel
from mixln.models.placed import PlacedConfig
from mixln.models.registry import register_architecture


@strict
class MixLNMistralConfig(PlacedConfig, MistralConfig):
    """`transformers.MistralConfig` with a placement; see `PlacedConfig` for the fields it adds, and what it raises."""

    model_type = "mixln_mistral"
    recipe_values: ClassVar[Mapping[str, Any]] = {"sliding_window": None}


class MixLNMistralModel(PlacedModel, MistralModel):
    """The stack without the head: `transformers.MistralModel` with placed blocks."""

    config_class = MixLNMistralConfig


class MixLNMistralForCausalLM(PlacedForCausalLM, MistralForCausalLM):
    """The language model: `transformers.MistralForCausalLM` on `MixLNMistralModel`."""

    model_class = MixLNMistralModel


class MixLNMistralForSequenceClassification(PlacedForSequenceClassification, MistralForSequenceClassification):
    """The classifier of texts: `transformers.MistralForSequenceClassification` on `MixLNMistralModel`."""

    model_class = MixLNMistralModel


register_architecture("mistral", MixLNMistralForCausalLM, heads=[MixLNMistralForSequenceClassification])
