"""The recipe of a pretraining run: one typed configuration, written in YAML, overridden from the command line."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import ClassVar

from mixln.checked import Checked, PositiveFloat, PositiveInt
from mixln.data.config import DataConfig
from mixln.errors import InputError
from mixln.training.config import TrainingConfig


def steps_of_tokens(tokens: int, batch_size: int, sequence_length: int, name: str) -> int:
    """Return the smallest number of steps that makes so many token slots.

    Args:
        tokens: wanted.
        batch_size: rows of a step.
        sequence_length: tokens of a row.
        name: what the number is called in messages.

    Raises:
        InputError: they are fewer than the token slots of one step: more would be trained on than was asked for.
    """
    if tokens < 1:
        raise InputError(f"`{name}` must be at least 1, not {tokens}")
    step = max(1, batch_size * sequence_length)
    if tokens < step:
        raise InputError(
            f"`{name}={tokens}` is less than one step, which takes {step:,} tokens ({batch_size} rows of "
            f"{sequence_length:,}). Give {step} or more, or a smaller batch_size or sequence_length"
        )
    return math.ceil(tokens / step)


@dataclass(frozen=True)
class ModelConfig(Checked):
    """The model of a recipe; the vocabulary comes from the tokenizer.

    Attributes:
        architecture: Such as llama, qwen3 or gpt2.
        placement: Where the norms are, such as mix(alpha=0.25). `mixln schemes` lists what there is.
        hidden_size: The width of the residual stream.
        intermediate_size: The width of the feed-forward's inner layer.
        num_hidden_layers: The number of blocks.
        num_attention_heads: The number of attention heads. It must divide hidden_size.
        num_key_value_heads: The number of key-value heads (grouped-query attention). Default: as many as heads.
        rms_norm_eps: The epsilon of the norms.
        rope_theta: The base of the rotary position embedding.
        tie_word_embeddings: Whether the head shares the embedding's weights.
        initializer_range: The standard deviation of the initial weights where the placement has no rule of its own.
        embedding_std: The standard deviation of the initial embedding. Default: the placement's rule for all matrices.
    """

    checked_path: ClassVar[str] = "model."

    architecture: str = "llama"
    placement: str = "pre"
    hidden_size: PositiveInt = 128
    intermediate_size: PositiveInt = 344
    num_hidden_layers: PositiveInt = 12
    num_attention_heads: PositiveInt = 4
    num_key_value_heads: PositiveInt | None = None
    rms_norm_eps: PositiveFloat = 1e-6
    rope_theta: PositiveFloat = 10000.0
    tie_word_embeddings: bool = False
    initializer_range: PositiveFloat = 0.02
    embedding_std: PositiveFloat | None = None


@dataclass(frozen=True)
class TextTrainingConfig(TrainingConfig):
    """What decides what a run on text computes; see `TrainingConfig`.

    Attributes:
        data: The text, the tokenizer and packing.
    """

    data: DataConfig = field(default_factory=DataConfig)

    @property
    def tokens_per_step(self) -> int:
        """Token slots of a batch: batch_size * sequence_length."""
        return self.batch_size * self.data.sequence_length


@dataclass(frozen=True)
class Recipe(TextTrainingConfig):
    """Everything that decides what a pretraining run computes, and how. The defaults are the recipe `nano`.

    Attributes:
        model: The model.
    """

    model: ModelConfig = field(default_factory=ModelConfig)
