"""OLMo (the first) under any placement: its norms take the mean off and have nothing to learn."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

import torch
from huggingface_hub.dataclasses import strict
from transformers import OlmoConfig, OlmoForCausalLM, OlmoModel
from transformers.models.olmo.modeling_olmo import (
    OlmoAttention,
    OlmoLayerNorm,
    OlmoMLP,
    OlmoPreTrainedModel,
    OlmoRotaryEmbedding,
)

from mixln.models.attention import PlacedAttention
from mixln.models.decoder import LLAMA_ROLES, PlacedDecoderLayer, PlacedForCausalLM, PlacedModel
from mixln.models.placed import PlacedConfig, PlacedPreTrainedModel
from mixln.models.registry import register_architecture
from mixln.placement import ArchitectureNorm, ParameterRole


@strict
class MixLNOlmoConfig(PlacedConfig, OlmoConfig):
    """`transformers.OlmoConfig` with a placement; see `PlacedConfig` for the fields it adds, and what it raises."""

    model_type = "mixln_olmo"

    recipe_names: ClassVar[Mapping[str, str | None]] = {"rms_norm_eps": None}

    def norm_factory(self) -> ArchitectureNorm:
        """OLMo's LayerNorm without gain and bias; its eps is fixed."""
        return ArchitectureNorm(OlmoLayerNorm, self.hidden_size, eps=1e-5, centered=True, has_weight=False)


class MixLNOlmoAttention(PlacedAttention, OlmoAttention):
    """The architecture's attention, with room for norms of query, key and value."""

    def project(self, hidden_states: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Return query, key and value, clipped if the config says so, before any norm of theirs."""
        limit, projected = self.config.clip_qkv, super().project(hidden_states)
        return projected if limit is None else tuple(states.clamp(-limit, limit) for states in projected)


class MixLNOlmoDecoderLayer(PlacedDecoderLayer):
    """One block."""

    attention_class = MixLNOlmoAttention
    mlp_class = OlmoMLP


class MixLNOlmoPreTrainedModel(PlacedPreTrainedModel, OlmoPreTrainedModel):
    """What the models below have in common."""

    config_class = MixLNOlmoConfig
    _no_split_modules = ["MixLNOlmoDecoderLayer"]
    _can_record_outputs = {"hidden_states": MixLNOlmoDecoderLayer, "attentions": OlmoAttention}
    parameter_roles: ClassVar[Mapping[str, ParameterRole]] = LLAMA_ROLES


class MixLNOlmoModel(PlacedModel, MixLNOlmoPreTrainedModel, OlmoModel):
    """The stack without the head: `transformers.OlmoModel` with placed blocks."""

    layer_class = MixLNOlmoDecoderLayer
    rotary_class = OlmoRotaryEmbedding


class MixLNOlmoForCausalLM(PlacedForCausalLM, MixLNOlmoPreTrainedModel, OlmoForCausalLM):
    """The language model: `transformers.OlmoForCausalLM` on `MixLNOlmoModel`."""

    model_class = MixLNOlmoModel


register_architecture("olmo", MixLNOlmoConfig, MixLNOlmoModel, MixLNOlmoForCausalLM)
