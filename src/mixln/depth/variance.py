"""Variance growth over depth (Curse of Depth: Sun et al. 2025, arXiv 2502.05795)."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import nn

from mixln.depth.forward import TokenBatch, counted_positions
from mixln.depth.stack import record_block_inputs
from mixln.depth.sums import TokenMean, at_least_float32


def token_variances(hidden_states: Sequence[torch.Tensor], mask: torch.Tensor) -> torch.Tensor:
    """Population variance over channels, mean_c (x_c - mean(x))^2, of each token.

    Args:
        hidden_states: x_1 .. x_{L+1}, each (batch, sequence, hidden).
        mask: bool (batch, sequence), true for the positions to return.

    Returns:
        (L + 1, tokens), float32 (float64 for float64 input).
    """
    return torch.stack([_variance(at_least_float32(x[mask.to(x.device)])) for x in hidden_states])


def variance_by_layer(
    model: nn.Module, batches: Iterable[TokenBatch], *, autocast_dtype: torch.dtype | None = None
) -> torch.Tensor:
    """Variance over channels of the residual stream, averaged over tokens.

    Entry l-1 belongs to x_l, the input of block l, the last to x_{L+1}, the last block's output before the final norm.
    Growth of this variance with l is what makes the deep blocks of Pre-LN models drift toward the identity (Curse of
    Depth: Sun et al. 2025, arXiv 2502.05795). The variance is the population variance (division by the number of
    channels, not one less); the average runs over the positions with a target (`targets != -100`).

    Args:
        model: a causal language model that `find_block_stack` knows.
        batches: (batch, sequence) tokens; read through once.
        autocast_dtype: autocast to this; None: the model's own precision.

    Returns:
        float64 (L + 1,), in squared units of the hidden states.

    Raises:
        InputError: no position with a target, or a model whose blocks are not found.
    """
    mean = TokenMean()
    for batch in batches:
        record = record_block_inputs(model, batch, autocast_dtype=autocast_dtype)
        mean.update(token_variances(record.hidden_states, counted_positions(batch)))
    return mean.result()


def _variance(x: torch.Tensor) -> torch.Tensor:
    return (x - x.mean(-1, keepdim=True)).square().mean(-1)
