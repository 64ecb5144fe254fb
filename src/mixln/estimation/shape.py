"""The sizes of a model that its cost depends on."""

from __future__ import annotations

from dataclasses import dataclass

from mixln.placement import BlockPlan
from mixln.tasks.recipe import Recipe
from mixln.tasks.stability import recipe_config, vocabulary_size

FLOAT32 = 4
"""Bytes of a float32."""


@dataclass(frozen=True)
class ModelShape:
    """Sizes of a model of the Llama family, or of a ViT.

    Attributes:
        hidden: d, width of the residual stream.
        intermediate: i, width of the feed-forward's inner layer.
        layers: L, number of blocks.
        heads: H, attention heads.
        key_value_heads: heads of keys and values.
        head_size: width of a head.
        vocabulary: V, tokens; of a classifier, its classes.
        sequence: T, tokens in a row.
        blocks: where the norms of each block are.
        tied: whether the head shares the embedding's weights.
        predicted: how many tokens of a row go through the head; None: all.
        is_causal: whether a token sees only what comes before it.
        is_gated: whether a feed-forward has two matrices side by side, a gate and what it is for.
    """

    hidden: int
    intermediate: int
    layers: int
    heads: int
    key_value_heads: int
    head_size: int
    vocabulary: int
    sequence: int
    blocks: tuple[BlockPlan, ...]
    tied: bool
    predicted: int | None = None
    is_causal: bool = True
    is_gated: bool = True

    @property
    def predicted_share(self) -> float:
        """The share of tokens that go through the head."""
        return 1.0 if self.predicted is None else self.predicted / self.sequence

    @property
    def inner_matrices(self) -> int:
        """Matrices from the stream to the inner layer of a feed-forward."""
        return 2 if self.is_gated else 1

    @property
    def query_width(self) -> int:
        """Width of all heads' queries together."""
        return self.heads * self.head_size

    @property
    def key_value_width(self) -> int:
        """Width of all heads' keys together, and of the values."""
        return self.key_value_heads * self.head_size

    @property
    def head_parameters(self) -> int:
        """Entries of the head's matrix, V * d."""
        return self.vocabulary * self.hidden

    @classmethod
    def of(cls, recipe: Recipe) -> ModelShape:
        """Return the sizes of a recipe's model.

        Raises:
            PlacementError, InputError: the model cannot be built.
        """
        config = recipe_config(recipe)
        model = recipe.model
        return cls(
            hidden=model.hidden_size,
            intermediate=model.intermediate_size,
            layers=model.num_hidden_layers,
            heads=model.num_attention_heads,
            key_value_heads=model.num_key_value_heads or model.num_attention_heads,
            head_size=model.hidden_size // model.num_attention_heads,
            vocabulary=vocabulary_size(recipe.data),
            sequence=recipe.data.sequence_length,
            blocks=config.stack_plan.blocks,
            tied=model.tie_word_embeddings,
        )
