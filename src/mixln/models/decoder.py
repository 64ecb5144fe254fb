"""What decoders of every architecture share: blocks, stack and language model, built from transformers' own parts.

input_ids -> embedding -> * embedding factor -> [embedding_norm] -> block 1 .. L -> final norm -> head -> logits

An architecture's file names the stock classes and what departs from Llama.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from typing import Any, ClassVar

import torch
from torch import nn
from transformers import GenerationMixin, PreTrainedModel

from mixln.models.attention import PlacedAttention
from mixln.models.placed import PlacedConfig
from mixln.models.stack import PlacedLayer, PlacedStack, PlacedWithHead
from mixln.models.transformers_internals import stock_base, stock_part
from mixln.placement import ParameterRole, PlacementWarning

LLAMA_ROLES: Mapping[str, ParameterRole] = {
    "embed_tokens.weight": "embedding",
    "layers.*.self_attn.q_proj.weight": "query",
    "layers.*.self_attn.k_proj.weight": "key",
    "layers.*.self_attn.v_proj.weight": "value",
    "layers.*.self_attn.o_proj.weight": "attention_output",
    "layers.*.mlp.gate_proj.weight": "gate",
    "layers.*.mlp.up_proj.weight": "up",
    "layers.*.mlp.down_proj.weight": "down",
    "lm_head.weight": "head",
    "score.weight": "head",
}
"""The roles of the matrices of Llama with any head, and of all that are named like it."""


class PlacedDecoderLayer(PlacedLayer):
    """One block of a decoder, whose attention is of (config, layer_idx) and takes what it needs by name."""

    attention_name: ClassVar[str] = "self_attn"

    def build_attention(self, config: Any, layer_idx: int) -> PlacedAttention:
        """Return the attention, which keeps its keys and values under the block's position."""
        build: Any = self.attention_class
        return build(config=config, layer_idx=layer_idx)

    def forward(self, hidden_states: torch.Tensor, **kwargs: Any) -> torch.Tensor:
        """Return the block's output (batch, sequence, hidden); `kwargs` are those of the architecture's attention."""
        attention = getattr(self, self.attention_name)
        return self.run_sublayers(
            hidden_states, attention=lambda x: attention(hidden_states=x, **kwargs)[0], feed_forward=self.mlp
        )


class PlacedModel(PlacedStack):
    """The stack of a decoder. Mixed in before an architecture's own model, whose forward runs the blocks.

    Attributes:
        rotary_class: of (config), or None without rotary positions.
    """

    layer_base = PlacedDecoderLayer
    layer_name = "DecoderLayer"
    rotary_class: ClassVar[Callable[..., nn.Module] | None]
    parameter_roles: ClassVar[Mapping[str, ParameterRole]] = LLAMA_ROLES
    embedding_norm_name: ClassVar[str] = "embedding_norm"
    final_norm_name: ClassVar[str] = "norm"

    @classmethod
    def _name_parts(cls) -> None:
        if not hasattr(cls, "rotary_class"):
            cls.rotary_class = stock_part(stock_base(cls), "RotaryEmbedding")
        super()._name_parts()

    def __init__(self, config: PlacedConfig) -> None:
        # not the architecture's constructor, which would build stock layers to be thrown away
        PreTrainedModel.__init__(self, config)
        plan, norm = config.stack_plan, config.norm_factory()
        self.embedding_factor = plan.embedding_factor(config.hidden_size)
        self.gradient_checkpointing = False
        self.build_parts(
            embedding=nn.Embedding(config.vocab_size, config.hidden_size, config.pad_token_id),
            embedding_norm=None if plan.embedding_norm is None else norm(plan.embedding_norm),
            layers=self.build_layers(),
            final_norm=self.build_final_norm(),
        )
        self.post_init()

    def build_parts(
        self, embedding: nn.Embedding, embedding_norm: nn.Module | None, layers: nn.ModuleList, final_norm: nn.Module
    ) -> None:
        """Give the parts the names that the architecture has for them; here those of Llama."""
        config: Any = self.config
        self.padding_idx, self.vocab_size = config.pad_token_id, config.vocab_size
        self.embed_tokens = embedding
        if embedding_norm is not None:
            self.embedding_norm = embedding_norm
        self.layers = layers
        self.norm = final_norm
        rotary_class = type(self).rotary_class
        assert rotary_class is not None
        self.rotary_emb = rotary_class(config=config)
        # asked for by those architectures whose layers can differ in it
        self.has_sliding_layers = "sliding_attention" in (getattr(config, "layer_types", None) or ())

    def forward(self, input_ids: Any = None, *args: Any, inputs_embeds: Any = None, **kwargs: Any) -> Any:
        """Run the stack as the architecture's own forward does.

        `inputs_embeds` are what the embedding returns: the placement's embedding factor and norm come after them.
        """
        if (input_ids is None) == (inputs_embeds is None):
            raise ValueError("give exactly one of input_ids and inputs_embeds")
        if inputs_embeds is None:
            inputs_embeds = self.get_input_embeddings()(input_ids)
            assert inputs_embeds is not None
        if self.embedding_factor != 1.0:
            inputs_embeds = inputs_embeds * self.embedding_factor
        if hasattr(self, "embedding_norm"):
            inputs_embeds = self.embedding_norm(inputs_embeds)
        return super().forward(None, *args, inputs_embeds=inputs_embeds, **kwargs)

    def embedding_parameters(self) -> list[str]:
        """Return the name of the table of tokens."""
        return [name for name, role in self.parameter_roles.items() if role == "embedding"]


class PlacedForCausalLM(PlacedWithHead, GenerationMixin):
    """The language model. Mixed in before an architecture's own, whose forward it is."""

    def __init__(self, config: PlacedConfig) -> None:
        # not the architecture's constructor, which would build a stock stack to be thrown away
        PreTrainedModel.__init__(self, config)
        self.add_module(self.base_model_prefix, self.model_class(config))
        self.vocab_size = config.vocab_size
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=config.stack_plan.head_bias)
        self.post_init()


class PlacedForSequenceClassification(PlacedWithHead):
    """The classifier of texts, or with one label a reward model. Mixed in before an architecture's own, whose forward
    reads the last token that is not the padding token of the config.

    A checkpoint of a language model opens with a new `score.weight` (labels, hidden), drawn as a head.

    Warns:
        PlacementWarning: the placement has no final norm, so nothing bounds what the head reads, nor the scores.
    """

    new_head = frozenset({"score.weight"})

    def __init__(self, config: PlacedConfig) -> None:
        # not the architecture's constructor, which would build a stock stack, or ask AutoModel for one
        PreTrainedModel.__init__(self, config)
        plan = config.stack_plan
        if plan.final_norm is None:
            warnings.warn(
                f"placement {config.placement!r} has no final norm: the scores of a {type(self).__name__} are "
                "unbounded, since they grow with the residual stream",
                PlacementWarning,
                stacklevel=2,
            )
        labels: Any = config.num_labels  # None for transformers' own type alone
        self.num_labels = labels
        self.add_module(self.base_model_prefix, self.model_class(config))
        self.score = nn.Linear(config.hidden_size, labels, bias=False)
        self.post_init()

    def forward(
        self,
        input_ids: Any = None,
        *args: Any,
        attention_mask: Any = None,
        position_ids: Any = None,
        inputs_embeds: Any = None,
        labels: Any = None,
        **kwargs: Any,
    ) -> Any:
        """Classify texts as the architecture's own forward does.

        Positions are counted from the first token that `attention_mask` (batch, sequence) shows, if they are not given:
        padding on the left does not move a text.
        """
        if position_ids is None and isinstance(attention_mask, torch.Tensor) and attention_mask.ndim == 2:
            position_ids = (attention_mask.long().cumsum(-1) - 1).clamp(min=0)
        given = {
            "attention_mask": attention_mask,
            "position_ids": position_ids,
            "inputs_embeds": inputs_embeds,
            "labels": labels,
        }
        kwargs |= {name: value for name, value in given.items() if value is not None}
        return super().forward(input_ids, *args, **kwargs)
