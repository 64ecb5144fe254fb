"""Qwen3 under any placement. As it is published: `pre+qk_norm`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

from huggingface_hub.dataclasses import strict
from transformers import Qwen3Config, Qwen3ForCausalLM, Qwen3Model
from transformers.models.qwen3.modeling_qwen3 import (
    Qwen3Attention,
    Qwen3MLP,
    Qwen3PreTrainedModel,
    Qwen3RMSNorm,
    Qwen3RotaryEmbedding,
)

from mixln.models.attention import PlacedAttention
from mixln.models.decoder import LLAMA_ROLES, PlacedDecoderLayer, PlacedForCausalLM, PlacedModel
from mixln.models.placed import PlacedConfig, PlacedPreTrainedModel
from mixln.models.registry import register_architecture
from mixln.placement import ArchitectureNorm, ParameterRole


@strict
class MixLNQwen3Config(PlacedConfig, Qwen3Config):
    """`transformers.Qwen3Config` with a placement; see `PlacedConfig` for the fields it adds, and what it raises."""

    model_type = "mixln_qwen3"

    stock_placement = "pre+qk_norm"

    placement: str = "pre+qk_norm"

    def norm_factory(self) -> ArchitectureNorm:
        """The architecture's own RMSNorm."""
        eps = self.rms_norm_eps
        return ArchitectureNorm(lambda width: Qwen3RMSNorm(width, eps=eps), self.hidden_size, eps=eps)


class MixLNQwen3Attention(PlacedAttention, Qwen3Attention):
    """The architecture's attention, with room for norms of query, key and value."""


class MixLNQwen3DecoderLayer(PlacedDecoderLayer):
    """One block."""

    attention_class = MixLNQwen3Attention
    mlp_class = Qwen3MLP


class MixLNQwen3PreTrainedModel(PlacedPreTrainedModel, Qwen3PreTrainedModel):
    """What the models below have in common."""

    config_class = MixLNQwen3Config
    _no_split_modules = ["MixLNQwen3DecoderLayer"]
    _can_record_outputs = {"hidden_states": MixLNQwen3DecoderLayer, "attentions": Qwen3Attention}
    parameter_roles: ClassVar[Mapping[str, ParameterRole]] = LLAMA_ROLES


class MixLNQwen3Model(PlacedModel, MixLNQwen3PreTrainedModel, Qwen3Model):
    """The stack without the head: `transformers.Qwen3Model` with placed blocks."""

    layer_class = MixLNQwen3DecoderLayer
    rotary_class = Qwen3RotaryEmbedding


class MixLNQwen3ForCausalLM(PlacedForCausalLM, MixLNQwen3PreTrainedModel, Qwen3ForCausalLM):
    """The language model: `transformers.Qwen3ForCausalLM` on `MixLNQwen3Model`."""

    model_class = MixLNQwen3Model


register_architecture("qwen3", MixLNQwen3Config, MixLNQwen3Model, MixLNQwen3ForCausalLM)
