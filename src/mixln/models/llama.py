"""Llama under any placement, on transformers' own Llama attention, MLP, norm and rotary embedding.

input_ids -> embed_tokens -> * embedding factor -> [embedding_norm] -> block 1 .. L -> norm -> lm_head -> logits
                                                                         |
                                 self_attn and mlp, each inside a `Residual` (see mixln.placement.residual)
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from huggingface_hub.dataclasses import strict
from torch import nn
from transformers import GenerationMixin, LlamaConfig, LlamaForCausalLM, LlamaModel, PreTrainedModel
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_outputs import BaseModelOutputWithPast
from transformers.models.llama.modeling_llama import (
    LlamaAttention,
    LlamaMLP,
    LlamaPreTrainedModel,
    LlamaRMSNorm,
    LlamaRotaryEmbedding,
)

from mixln.models.placed import PlacedConfig, PlacedPreTrainedModel
from mixln.placement import NormFactory, PlacedBlock, PlacementError, Role, architecture_norm


@strict
class MixLNLlamaConfig(PlacedConfig, LlamaConfig):
    """`transformers.LlamaConfig` with a placement; see `PlacedConfig` for the fields it adds.

    Raises (from the constructor):
        PlacementError: a placement that there is not.
        huggingface_hub.errors.StrictDataclassError: a field of the wrong type, heads that do not divide the hidden
            size, or a placement that does not fit the number of layers.
    """

    model_type = "mixln_llama"

    def validate_heads(self) -> None:
        """Check what stock Llama does not: key-value heads that divide the heads, and rotary pairs in each head."""
        if not self.num_key_value_heads or self.num_attention_heads % self.num_key_value_heads != 0:
            raise ValueError(
                f"num_key_value_heads ({self.num_key_value_heads}) does not divide num_attention_heads "
                f"({self.num_attention_heads})"
            )
        if self.head_dim is None or self.head_dim % 2 != 0:
            raise ValueError(f"the size of a head ({self.head_dim}) must be even for rotary position embeddings")


class MixLNLlamaDecoderLayer(PlacedBlock, GradientCheckpointingLayer):
    """One block: Llama's attention and MLP, with the norms where the plan puts them."""

    def __init__(self, config: MixLNLlamaConfig, layer_idx: int) -> None:
        super().__init__()
        plan = config.stack_plan.blocks[layer_idx]
        if plan.attention.qkv_norm is not None:
            raise PlacementError(f"placement {config.placement!r}: Llama's attention has no query, key or value norms")
        self.self_attn = LlamaAttention(config=config, layer_idx=layer_idx)
        self.mlp = LlamaMLP(config)
        self.add_placement(plan, llama_norm(config), config.hidden_size)

    def forward(self, hidden_states: torch.Tensor, **kwargs: Any) -> torch.Tensor:
        """Return the block's output (batch, sequence, hidden); `kwargs` are those of `LlamaAttention`."""
        return self.run_sublayers(
            hidden_states,
            attention=lambda x: self.self_attn(hidden_states=x, **kwargs)[0],
            feed_forward=self.mlp,
        )


def llama_norm(config: LlamaConfig) -> NormFactory:
    """Return the factory of Llama's own RMSNorm for this config."""
    return architecture_norm(lambda: LlamaRMSNorm(config.hidden_size, eps=config.rms_norm_eps))


class MixLNLlamaPreTrainedModel(PlacedPreTrainedModel, LlamaPreTrainedModel):
    """What the models below have in common."""

    config_class = MixLNLlamaConfig
    _no_split_modules = ["MixLNLlamaDecoderLayer"]
    _can_record_outputs = {"hidden_states": MixLNLlamaDecoderLayer, "attentions": LlamaAttention}
    parameter_roles: ClassVar[Mapping[str, Role]] = {
        "embed_tokens.weight": "embedding",
        "layers.*.self_attn.q_proj.weight": "query",
        "layers.*.self_attn.k_proj.weight": "key",
        "layers.*.self_attn.v_proj.weight": "value",
        "layers.*.self_attn.o_proj.weight": "attention_output",
        "layers.*.mlp.gate_proj.weight": "gate",
        "layers.*.mlp.up_proj.weight": "up",
        "layers.*.mlp.down_proj.weight": "down",
        "lm_head.weight": "head",
    }


class MixLNLlamaModel(MixLNLlamaPreTrainedModel, LlamaModel):
    """The stack without the head: `transformers.LlamaModel` with placed blocks."""

    def __init__(self, config: MixLNLlamaConfig) -> None:
        # not LlamaModel's constructor, which would build stock layers to be thrown away
        PreTrainedModel.__init__(self, config)
        plan, norm = config.stack_plan, llama_norm(config)
        self.padding_idx = config.pad_token_id
        self.vocab_size = config.vocab_size
        self.embedding_factor = plan.embedding_factor(config.hidden_size)
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size, self.padding_idx)
        if plan.embedding_norm is not None:
            self.embedding_norm = norm(plan.embedding_norm)
        self.layers = nn.ModuleList(MixLNLlamaDecoderLayer(config, i) for i in range(config.num_hidden_layers))
        self.norm = nn.Identity() if plan.final_norm is None else norm(plan.final_norm)
        self.rotary_emb = LlamaRotaryEmbedding(config=config)
        self.gradient_checkpointing = False
        self.post_init()

    def forward(
        self,
        input_ids: torch.LongTensor | None = None,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.LongTensor | None = None,
        past_key_values: Any = None,
        inputs_embeds: torch.Tensor | None = None,
        use_cache: bool | None = None,
        **kwargs: Any,
    ) -> BaseModelOutputWithPast:
        """Run the stack as `LlamaModel.forward` does.

        `inputs_embeds` are what `embed_tokens` returns: the placement's embedding factor and norm come after them.
        """
        if (input_ids is None) == (inputs_embeds is None):
            raise ValueError("give exactly one of input_ids and inputs_embeds")
        if inputs_embeds is None:
            inputs_embeds = self.embed_tokens(input_ids)
            assert inputs_embeds is not None
        if self.embedding_factor != 1.0:
            inputs_embeds = inputs_embeds * self.embedding_factor
        if hasattr(self, "embedding_norm"):
            inputs_embeds = self.embedding_norm(inputs_embeds)
        return LlamaModel.forward(
            self,
            attention_mask=attention_mask,
            position_ids=position_ids,
            past_key_values=past_key_values,
            inputs_embeds=inputs_embeds,
            use_cache=use_cache,
            **kwargs,
        )


class MixLNLlamaForCausalLM(MixLNLlamaPreTrainedModel, LlamaForCausalLM, GenerationMixin):
    """The language model: `transformers.LlamaForCausalLM` on `MixLNLlamaModel`."""

    def __init__(self, config: MixLNLlamaConfig) -> None:
        # not LlamaForCausalLM's constructor, which would build a stock LlamaModel to be thrown away
        PreTrainedModel.__init__(self, config)
        self.model = MixLNLlamaModel(config)
        self.vocab_size = config.vocab_size
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.post_init()
