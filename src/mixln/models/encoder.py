"""What encoders share: stacks whose tokens all attend to each other, and whose embedding is a module of its own.

input -> embeddings (parts, added up -> * embedding factor -> [embedding_norm] -> dropout) -> block 1 .. L -> final norm

The architecture's own forward makes the mask, so a block takes it as it is given. A block may end its branches in a
learned scale of each channel (LayerScale) and in dropped paths, which decoders lack.
"""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import nn
from transformers import PreTrainedModel

from mixln.models.attention import PlacedAttention
from mixln.models.placed import PlacedConfig
from mixln.models.stack import PlacedLayer, PlacedStack, placed_class
from mixln.models.transformers_internals import stock_base, stock_part


class PlacedEncoderLayer(PlacedLayer):
    """One block of an encoder, whose attention is of (config) and takes hidden states and the mask."""

    attention_name: ClassVar[str] = "attention"

    def __init__(self, config: Any, layer_idx: int) -> None:
        super().__init__(config, layer_idx)
        self.dropout = nn.Dropout(config.hidden_dropout_prob)
        last = max(1, config.num_hidden_layers - 1)
        self.add_branch_end(
            config.hidden_size,
            layer_scale=getattr(config, "layer_scale_init_value", None),
            # from 0 at the first block to the whole rate at the last
            drop_path=getattr(config, "drop_path_rate", 0.0) * layer_idx / last,
        )

    def build_attention(self, config: Any, layer_idx: int) -> PlacedAttention:  # noqa: ARG002
        """Return the attention; it keeps nothing between calls, so it needs no position."""
        build: Any = self.attention_class
        return build(config)

    def forward(
        self, hidden_states: torch.Tensor, attention_mask: torch.Tensor | None = None, **kwargs: Any
    ) -> torch.Tensor:
        """Return the block's output (batch, tokens, hidden)."""
        attention = self.get_submodule(self.attention_name)
        return self.run_sublayers(
            hidden_states,
            attention=lambda x: self.dropout(attention(x, attention_mask, **kwargs)[0]),
            feed_forward=lambda x: self.dropout(self.mlp(x)),
        )


class PlacedEmbeddings(nn.Module):
    """Mixed in before an architecture's own embeddings, which add up their parts and end in `dropout`.

    The placement's factor is on the sum, positions included, as what the blocks get is the sum; its norm stands behind.
    """

    dropout: nn.Module

    def add_placement(self, config: PlacedConfig) -> None:
        """Put the placement's factor and norm between the sum and the dropout."""
        plan = config.stack_plan
        self.embedding_factor = plan.embedding_factor(config.hidden_size)
        if plan.embedding_norm is not None:
            self.embedding_norm = config.norm_factory()(plan.embedding_norm)
        self.embedding_dropout, self.dropout = self.dropout, nn.Identity()

    def forward(self, *args: Any, **kwargs: Any) -> torch.Tensor:
        """Return (batch, tokens, hidden) for the arguments of the architecture's own forward."""
        embedded = super().forward(*args, **kwargs)
        if self.embedding_factor != 1.0:
            embedded = embedded * self.embedding_factor
        if hasattr(self, "embedding_norm"):
            embedded = self.embedding_norm(embedded)
        return self.embedding_dropout(embedded)


class PlacedEncoder(PlacedStack):
    """The stack of an encoder. Mixed in before an architecture's own model, whose forward runs the blocks.

    Attributes:
        embeddings_class: of (config).
        pooler_class: of (config), a head on the first token.
    """

    layer_base = PlacedEncoderLayer
    layer_name = "Layer"
    embedding_norm_name = "embeddings.embedding_norm"
    final_norm_name = "layernorm"
    new_head = frozenset({"pooler.dense.weight", "pooler.dense.bias"})
    embeddings_class: ClassVar[type[PlacedEmbeddings]]
    pooler_class: ClassVar[type[nn.Module]]

    @classmethod
    def _name_parts(cls) -> None:
        stock = stock_base(cls)
        if not hasattr(cls, "embeddings_class"):
            own = stock_part(stock, "Embeddings")
            cls.embeddings_class = placed_class(cls, own, (PlacedEmbeddings, own))
        if not hasattr(cls, "pooler_class"):
            cls.pooler_class = stock_part(stock, "Pooler")
        super()._name_parts()

    def __init__(self, config: PlacedConfig, add_pooling_layer: bool = True) -> None:
        # not the architecture's constructor, which would build stock layers to be thrown away
        PreTrainedModel.__init__(self, config)
        self.gradient_checkpointing = False
        build: Any = self.embeddings_class
        embeddings = build(config)
        embeddings.add_placement(config)
        self.build_parts(embeddings, self.build_layers(), self.build_final_norm())
        self.pooler = self.pooler_class(config) if add_pooling_layer else None
        self.post_init()

    @classmethod
    def options_like(cls, model: Any) -> dict[str, Any]:
        """Return whether to leave the pooler out."""
        return {} if getattr(model, "pooler", None) is not None else {"add_pooling_layer": False}

    def build_parts(self, embeddings: nn.Module, layers: nn.ModuleList, final_norm: nn.Module) -> None:
        """Give the parts the names that the architecture has for them; here those of ViT."""
        self.embeddings, self.layers, self.layernorm = embeddings, layers, final_norm

    def embedding_parameters(self) -> list[str]:
        """Return the names of the parameters whose sum the embedding is, biases included."""
        names = (f"embeddings.{name}" for name, _ in self.embeddings.named_parameters())
        return [name for name in names if not name.startswith(f"{self.embedding_norm_name}.")]
