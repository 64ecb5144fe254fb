"""Qwen2 and Qwen2.5 under any placement: Llama with biases on query, key and value."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

from huggingface_hub.dataclasses import strict
from transformers import Qwen2Config, Qwen2ForCausalLM, Qwen2Model
from transformers.models.qwen2.modeling_qwen2 import (
    Qwen2Attention,
    Qwen2MLP,
    Qwen2PreTrainedModel,
    Qwen2RMSNorm,
    Qwen2RotaryEmbedding,
)

from mixln.models.attention import PlacedAttention
from mixln.models.decoder import LLAMA_ROLES, PlacedDecoderLayer, PlacedForCausalLM, PlacedModel
from mixln.models.placed import PlacedConfig, PlacedPreTrainedModel
from mixln.models.registry import register_architecture
from mixln.placement import ArchitectureNorm, ParameterRole


@strict
class MixLNQwen2Config(PlacedConfig, Qwen2Config):
    """`transformers.Qwen2Config` with a placement; see `PlacedConfig` for the fields it adds, and what it raises."""

    model_type = "mixln_qwen2"

    def norm_factory(self) -> ArchitectureNorm:
        """The architecture's own RMSNorm."""
        eps = self.rms_norm_eps
        return ArchitectureNorm(lambda width: Qwen2RMSNorm(width, eps=eps), self.hidden_size, eps=eps)


class MixLNQwen2Attention(PlacedAttention, Qwen2Attention):
    """The architecture's attention, with room for norms of query, key and value."""


class MixLNQwen2DecoderLayer(PlacedDecoderLayer):
    """One block."""

    attention_class = MixLNQwen2Attention
    mlp_class = Qwen2MLP


class MixLNQwen2PreTrainedModel(PlacedPreTrainedModel, Qwen2PreTrainedModel):
    """What the models below have in common."""

    config_class = MixLNQwen2Config
    _no_split_modules = ["MixLNQwen2DecoderLayer"]
    _can_record_outputs = {"hidden_states": MixLNQwen2DecoderLayer, "attentions": Qwen2Attention}
    parameter_roles: ClassVar[Mapping[str, ParameterRole]] = LLAMA_ROLES


class MixLNQwen2Model(PlacedModel, MixLNQwen2PreTrainedModel, Qwen2Model):
    """The stack without the head: `transformers.Qwen2Model` with placed blocks."""

    layer_class = MixLNQwen2DecoderLayer
    rotary_class = Qwen2RotaryEmbedding


class MixLNQwen2ForCausalLM(PlacedForCausalLM, MixLNQwen2PreTrainedModel, Qwen2ForCausalLM):
    """The language model: `transformers.Qwen2ForCausalLM` on `MixLNQwen2Model`."""

    model_class = MixLNQwen2Model


register_architecture("qwen2", MixLNQwen2Config, MixLNQwen2Model, MixLNQwen2ForCausalLM)
