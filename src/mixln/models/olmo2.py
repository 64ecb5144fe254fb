"""OLMo 2 under any placement. As it is published: `reordered+qk_norm(per_head=false)`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

from huggingface_hub.dataclasses import strict
from transformers import Olmo2Config, Olmo2ForCausalLM, Olmo2Model
from transformers.models.olmo2.modeling_olmo2 import (
    Olmo2Attention,
    Olmo2MLP,
    Olmo2PreTrainedModel,
    Olmo2RMSNorm,
    Olmo2RotaryEmbedding,
)

from mixln.models.attention import PlacedAttention
from mixln.models.decoder import LLAMA_ROLES, PlacedDecoderLayer, PlacedForCausalLM, PlacedModel
from mixln.models.placed import PlacedConfig, PlacedPreTrainedModel
from mixln.models.registry import register_architecture
from mixln.placement import ArchitectureNorm, ParameterRole


@strict
class MixLNOlmo2Config(PlacedConfig, Olmo2Config):
    """`transformers.Olmo2Config` with a placement; see `PlacedConfig` for the fields it adds, and what it raises."""

    model_type = "mixln_olmo2"

    stock_placement = "reordered+qk_norm(per_head=false)"

    placement: str = "reordered+qk_norm(per_head=false)"

    def norm_factory(self) -> ArchitectureNorm:
        """The architecture's own RMSNorm."""
        eps = self.rms_norm_eps
        return ArchitectureNorm(lambda width: Olmo2RMSNorm(width, eps=eps), self.hidden_size, eps=eps)


class MixLNOlmo2Attention(PlacedAttention, Olmo2Attention):
    """The architecture's attention, with room for norms of query, key and value."""


class MixLNOlmo2DecoderLayer(PlacedDecoderLayer):
    """One block."""

    attention_class = MixLNOlmo2Attention
    mlp_class = Olmo2MLP


class MixLNOlmo2PreTrainedModel(PlacedPreTrainedModel, Olmo2PreTrainedModel):
    """What the models below have in common."""

    config_class = MixLNOlmo2Config
    _no_split_modules = ["MixLNOlmo2DecoderLayer"]
    _can_record_outputs = {"hidden_states": MixLNOlmo2DecoderLayer, "attentions": Olmo2Attention}
    parameter_roles: ClassVar[Mapping[str, ParameterRole]] = LLAMA_ROLES


class MixLNOlmo2Model(PlacedModel, MixLNOlmo2PreTrainedModel, Olmo2Model):
    """The stack without the head: `transformers.Olmo2Model` with placed blocks."""

    layer_class = MixLNOlmo2DecoderLayer
    rotary_class = Olmo2RotaryEmbedding


class MixLNOlmo2ForCausalLM(PlacedForCausalLM, MixLNOlmo2PreTrainedModel, Olmo2ForCausalLM):
    """The language model: `transformers.Olmo2ForCausalLM` on `MixLNOlmo2Model`."""

    model_class = MixLNOlmo2Model


register_architecture("olmo2", MixLNOlmo2Config, MixLNOlmo2Model, MixLNOlmo2ForCausalLM)
