"""Mistral under any placement: Llama with a window of attention, which recipes leave open."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from huggingface_hub.dataclasses import strict
from transformers import MistralConfig, MistralForCausalLM, MistralModel
from transformers.models.mistral.modeling_mistral import (
    MistralAttention,
    MistralMLP,
    MistralPreTrainedModel,
    MistralRMSNorm,
    MistralRotaryEmbedding,
)

from mixln.models.attention import PlacedAttention
from mixln.models.decoder import LLAMA_ROLES, PlacedDecoderLayer, PlacedForCausalLM, PlacedModel
from mixln.models.placed import PlacedConfig, PlacedPreTrainedModel
from mixln.models.registry import register_architecture
from mixln.placement import ArchitectureNorm, ParameterRole


@strict
class MixLNMistralConfig(PlacedConfig, MistralConfig):
    """`transformers.MistralConfig` with a placement; see `PlacedConfig` for the fields it adds, and what it raises."""

    model_type = "mixln_mistral"

    recipe_values: ClassVar[Mapping[str, Any]] = {"sliding_window": None}

    def norm_factory(self) -> ArchitectureNorm:
        """The architecture's own RMSNorm."""
        eps = self.rms_norm_eps
        return ArchitectureNorm(lambda width: MistralRMSNorm(width, eps=eps), self.hidden_size, eps=eps)


class MixLNMistralAttention(PlacedAttention, MistralAttention):
    """The architecture's attention, with room for norms of query, key and value."""


class MixLNMistralDecoderLayer(PlacedDecoderLayer):
    """One block."""

    attention_class = MixLNMistralAttention
    mlp_class = MistralMLP


class MixLNMistralPreTrainedModel(PlacedPreTrainedModel, MistralPreTrainedModel):
    """What the models below have in common."""

    config_class = MixLNMistralConfig
    _no_split_modules = ["MixLNMistralDecoderLayer"]
    _can_record_outputs = {"hidden_states": MixLNMistralDecoderLayer, "attentions": MistralAttention}
    parameter_roles: ClassVar[Mapping[str, ParameterRole]] = LLAMA_ROLES


class MixLNMistralModel(PlacedModel, MixLNMistralPreTrainedModel, MistralModel):
    """The stack without the head: `transformers.MistralModel` with placed blocks."""

    layer_class = MixLNMistralDecoderLayer
    rotary_class = MistralRotaryEmbedding


class MixLNMistralForCausalLM(PlacedForCausalLM, MixLNMistralPreTrainedModel, MistralForCausalLM):
    """The language model: `transformers.MistralForCausalLM` on `MixLNMistralModel`."""

    model_class = MixLNMistralModel


register_architecture("mistral", MixLNMistralConfig, MixLNMistralModel, MixLNMistralForCausalLM)
