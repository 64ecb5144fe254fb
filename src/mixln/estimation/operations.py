"""Floating-point operations of a training step."""

from __future__ import annotations

from dataclasses import astuple, dataclass

from mixln.estimation.parameters import ParameterCount
from mixln.estimation.shape import ModelShape


@dataclass(frozen=True)
class Operations:
    """Floating-point operations for one token, or one image, forward and backward; a multiplication and an addition are
    two.

    Attributes:
        matrices: 6 * N, with N all parameters but the input embedding's, which multiplies nothing: 2 * N in the
            forward, twice that in the backward (gradients of inputs and of weights). Norms' weights are in N; they
            are too few to matter.
        attention: 12 * L * w * T / 2, with w = H * head_size (Chowdhery et al. 2022, PaLM, appendix B): 2 * w * T each
            for scores and for the sum of values, three times for forward and backward. Halved, since a token sees on
            average half the sequence. Borders of packed documents would take away more; they are left out. In a ViT a
            token sees all, and nothing is halved.
        masked_attention: the other half, which some implementations compute and then mask out.
        recomputation: activation checkpointing's second forward of the blocks, 2 * N_blocks + 4 * L * w * T / 2.
    """

    matrices: float
    attention: float
    masked_attention: float
    recomputation: float

    @property
    def model(self) -> float:
        """Operations that the model needs, however it is computed; the numerator of model-FLOPs utilisation."""
        return self.matrices + self.attention

    @property
    def executed(self) -> float:
        """Operations that are carried out."""
        return self.model + self.masked_attention + self.recomputation

    def times(self, count: int) -> Operations:
        """Return the operations for so many."""
        return Operations(*(count * one for one in astuple(self)))


def count_operations(
    shape: ModelShape, parameters: ParameterCount, *, explicit_attention: bool, activation_checkpointing: bool
) -> Operations:
    """Return the operations for one token.

    Args:
        shape: sizes of the model.
        parameters: its parameters.
        explicit_attention: whether the scores of all pairs are computed and those of the future masked out.
        activation_checkpointing: whether the blocks' forward is computed again in the backward.
    """
    attention = 12 * shape.layers * shape.query_width * shape.sequence / (2 if shape.is_causal else 1)
    masked = attention if explicit_attention and shape.is_causal else 0.0
    block_forward = 2 * parameters.in_blocks + (attention + masked) / 3
    seldom = (1 - shape.predicted_share) * parameters.head  # the head's, of tokens that do not go through it
    return Operations(
        matrices=6 * (parameters.multiplied - seldom),
        attention=attention,
        masked_attention=masked,
        recomputation=block_forward if activation_checkpointing else 0.0,
    )
