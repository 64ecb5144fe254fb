"""GPT-2 under any placement: LayerNorm, biases everywhere, learned positions, fused query, key and value."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Mapping
from typing import Any, ClassVar

import torch
from huggingface_hub.dataclasses import strict
from torch import nn
from transformers import GPT2Config, GPT2ForSequenceClassification, GPT2LMHeadModel, GPT2Model

from mixln.models.attention import PlacedAttention
from mixln.models.decoder import PlacedDecoderLayer, PlacedForCausalLM, PlacedForSequenceClassification, PlacedModel
from mixln.models.placed import PlacedConfig
from mixln.models.registry import register_architecture
from mixln.models.transformers_internals import GPT2MLP, GPT2Attention
from mixln.placement import ArchitectureNorm, FusedRoles, ParameterRole


@strict
class MixLNGPT2Config(PlacedConfig, GPT2Config):
    """`transformers.GPT2Config` with a placement; see `PlacedConfig` for the fields it adds, and what it raises.

    A model that is trained from a recipe has no dropout, as the other architectures.
    """

    model_type = "mixln_gpt2"
    norm_eps_name = "layer_norm_epsilon"
    recipe_names: ClassVar[Mapping[str, str | None]] = {
        "intermediate_size": "n_inner",
        "num_key_value_heads": None,
        "rope_theta": None,
    }
    recipe_values: ClassVar[Mapping[str, Any]] = {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}

    def validate_attention(self) -> None:
        """Refuse what this library's GPT-2 would leave out: attention to an encoder."""
        if self.add_cross_attention:
            raise ValueError(
                "add_cross_attention: this library's GPT-2 is a decoder alone, without attention to an encoder"
            )

    def norm_factory(self) -> ArchitectureNorm:
        """LayerNorm with gain and bias."""
        eps = self.layer_norm_epsilon
        return ArchitectureNorm(
            lambda width: nn.LayerNorm(width, eps=eps), self.hidden_size, eps=eps, centered=True, has_bias=True
        )


class MixLNGPT2Attention(PlacedAttention, GPT2Attention):
    """The architecture's attention, with room for norms of query, key and value."""

    projection_parts: ClassVar[Mapping[str, str]] = {"c_attn": "qkv"}


def _mlp(config: MixLNGPT2Config) -> nn.Module:
    return GPT2MLP(4 * config.hidden_size if config.n_inner is None else config.n_inner, config)


class MixLNGPT2Block(PlacedDecoderLayer):
    """One block."""

    attention_class = MixLNGPT2Attention
    attention_name = "attn"
    mlp_class: ClassVar[Callable[[Any], nn.Module]] = staticmethod(_mlp)
    norm_names: ClassVar[Mapping[tuple[str, str], str]] = {
        ("attention", "input_norm"): "ln_1",
        ("feed_forward", "input_norm"): "ln_2",
    }

    def forward(
        self,
        hidden_states: torch.Tensor,
        cache: Any = None,
        attention_mask: torch.Tensor | None = None,
        encoder_hidden_states: None = None,
        encoder_attention_mask: None = None,
        **kwargs: Any,
    ) -> torch.Tensor:
        """Return the block's output (batch, sequence, hidden).

        `GPT2Model` gives the first arguments by position, and its attention takes them in the same order; what they are
        called there differs between versions of transformers.
        """
        if encoder_hidden_states is not None or encoder_attention_mask is not None:
            raise ValueError("this library's GPT-2 is a decoder alone: it takes no states of an encoder")
        attention = self.get_submodule(self.attention_name)
        return self.run_sublayers(
            hidden_states, attention=lambda x: attention(x, cache, attention_mask, **kwargs)[0], feed_forward=self.mlp
        )


# transformers' base class and its GPT2Model call an argument of set_input_embeddings differently
class MixLNGPT2Model(PlacedModel, GPT2Model):  # pyright: ignore[reportIncompatibleMethodOverride]
    """The stack without the head: `transformers.GPT2Model` with placed blocks."""

    config_class = MixLNGPT2Config
    layer_class = MixLNGPT2Block
    rotary_class = None
    parameter_roles: ClassVar[Mapping[str, ParameterRole]] = {
        "wte.weight": "embedding",
        "wpe.weight": "position_embedding",
        "h.*.attn.c_attn.weight": FusedRoles(("query", "key", "value"), dim=1),
        "h.*.attn.c_proj.weight": "attention_output",
        "h.*.mlp.c_fc.weight": "up",
        "h.*.mlp.c_proj.weight": "down",
        "lm_head.weight": "head",
        "score.weight": "head",
    }
    embedding_norm_name = "drop.embedding_norm"
    final_norm_name = "ln_f"

    def build_parts(
        self, embedding: nn.Embedding, embedding_norm: nn.Module | None, layers: nn.ModuleList, final_norm: nn.Module
    ) -> None:
        """Give the parts GPT-2's names. A norm on the embedding stands where tokens and positions are added up."""
        config: Any = self.config
        self.embed_dim = config.hidden_size
        self.wte, self.wpe = embedding, nn.Embedding(config.max_position_embeddings, self.embed_dim)
        dropout = nn.Dropout(config.embd_pdrop)
        parts = OrderedDict[str, nn.Module](embedding_norm=embedding_norm or dropout, dropout=dropout)
        self.drop = dropout if embedding_norm is None else nn.Sequential(parts)
        self.h, self.ln_f = layers, final_norm


class MixLNGPT2ForCausalLM(PlacedForCausalLM, GPT2LMHeadModel):
    """The language model: `transformers.GPT2LMHeadModel` on `MixLNGPT2Model`."""

    model_class = MixLNGPT2Model


class MixLNGPT2ForSequenceClassification(PlacedForSequenceClassification, GPT2ForSequenceClassification):
    """The classifier of texts: `transformers.GPT2ForSequenceClassification` on `MixLNGPT2Model`."""

    model_class = MixLNGPT2Model


register_architecture("gpt2", MixLNGPT2ForCausalLM, heads=[MixLNGPT2ForSequenceClassification])
