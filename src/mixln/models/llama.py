"""Llama under any placement, on transformers' own Llama attention, MLP, norm and rotary embedding."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

from huggingface_hub.dataclasses import strict
from transformers import LlamaConfig, LlamaForCausalLM, LlamaModel
from transformers.models.llama.modeling_llama import (
    LlamaAttention,
    LlamaMLP,
    LlamaPreTrainedModel,
    LlamaRMSNorm,
    LlamaRotaryEmbedding,
)

from mixln.models.attention import PlacedAttention
from mixln.models.decoder import LLAMA_ROLES, PlacedDecoderLayer, PlacedForCausalLM, PlacedModel
from mixln.models.placed import PlacedConfig, PlacedPreTrainedModel
from mixln.models.registry import register_architecture
from mixln.placement import ArchitectureNorm, ParameterRole


@strict
class MixLNLlamaConfig(PlacedConfig, LlamaConfig):
    """`transformers.LlamaConfig` with a placement; see `PlacedConfig` for the fields it adds.

    Raises (from the constructor):
        PlacementError: a placement that there is not.
        huggingface_hub.errors.StrictDataclassError: a field of the wrong type, heads that do not divide the hidden
            size, or a placement that does not fit the number of layers.
    """

    model_type = "mixln_llama"

    def norm_factory(self) -> ArchitectureNorm:
        """Llama's own RMSNorm."""
        eps = self.rms_norm_eps
        return ArchitectureNorm(lambda width: LlamaRMSNorm(width, eps=eps), self.hidden_size, eps=eps)


class MixLNLlamaAttention(PlacedAttention, LlamaAttention):
    """Llama's attention, with room for norms of query, key and value."""


class MixLNLlamaDecoderLayer(PlacedDecoderLayer):
    """One block of Llama."""

    attention_class = MixLNLlamaAttention
    mlp_class = LlamaMLP


class MixLNLlamaPreTrainedModel(PlacedPreTrainedModel, LlamaPreTrainedModel):
    """What the models below have in common."""

    config_class = MixLNLlamaConfig
    _no_split_modules = ["MixLNLlamaDecoderLayer"]
    _can_record_outputs = {"hidden_states": MixLNLlamaDecoderLayer, "attentions": LlamaAttention}
    parameter_roles: ClassVar[Mapping[str, ParameterRole]] = LLAMA_ROLES


class MixLNLlamaModel(PlacedModel, MixLNLlamaPreTrainedModel, LlamaModel):
    """The stack without the head: `transformers.LlamaModel` with placed blocks."""

    layer_class = MixLNLlamaDecoderLayer
    rotary_class = LlamaRotaryEmbedding


class MixLNLlamaForCausalLM(PlacedForCausalLM, MixLNLlamaPreTrainedModel, LlamaForCausalLM):
    """The language model: `transformers.LlamaForCausalLM` on `MixLNLlamaModel`."""

    model_class = MixLNLlamaModel


register_architecture("llama", MixLNLlamaConfig, MixLNLlamaModel, MixLNLlamaForCausalLM)
