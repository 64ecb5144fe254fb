"""Variance growth over depth (Curse of Depth: Sun et al. 2025, arXiv 2502.05795)."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import nn

from mixln.depth.batches import ModelBatch
from mixln.depth.forward import TokenBatch
from mixln.depth.growth import StreamGrowth
from mixln.depth.observation import observe


def variance_by_layer(
    model: nn.Module, batches: Iterable[TokenBatch | ModelBatch], *, autocast_dtype: torch.dtype | None = None
) -> torch.Tensor:
    """Variance over channels of the residual stream, averaged over tokens.

    Entry l-1 belongs to x_l, the input of block l, the last to x_{L+1}, the last block's output before the final norm.
    Growth of this variance with l is what makes the deep blocks of Pre-LN models drift toward the identity (Curse of
    Depth: Sun et al. 2025, arXiv 2502.05795). The variance is the population variance (division by the number of
    channels, not one less); the average runs over the positions with a target (`targets != -100`).

    Args:
        model: a model whose blocks `find_block_stack` finds.
        batches: (batch, sequence) tokens; read through once.
        autocast_dtype: autocast to this; None: the model's own precision.

    Returns:
        float64 (L + 1,), in squared units of the hidden states.

    Raises:
        InputError: no position that counts, or a model whose blocks are not found.
    """
    growth = StreamGrowth()
    observe(model, batches, [growth], autocast_dtype=autocast_dtype)
    return growth.variance().value
