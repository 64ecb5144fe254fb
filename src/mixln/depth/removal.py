"""What the loss becomes without one layer (performance drop; Mix-LN: Li, Yin, Liu 2024, arXiv 2412.13795)."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import nn

from mixln.depth.batches import ModelBatch
from mixln.depth.forward import TokenBatch
from mixln.depth.interventions import PerformanceDrop, removals
from mixln.depth.observation import observe
from mixln.depth.performance import LanguageModelLoss


def removal_loss_increase(
    model: nn.Module, batches: Iterable[TokenBatch | ModelBatch], *, autocast_dtype: torch.dtype | None = None
) -> torch.Tensor:
    """dP(l) = loss without block l - loss with all blocks; positive means that removing block l does harm.

    Performance drop of Mix-LN (Li, Yin, Liu 2024, arXiv 2412.13795), section 2, with P = validation loss
    (`evaluation_loss`). The model itself stays as it is. `PerformanceDrop` has intervals and other interventions.

    Args:
        model: a causal language model whose blocks `find_block_stack` finds.
        batches: (batch, sequence) tokens; read through once.
        autocast_dtype: autocast to this; None: the model's own precision.

    Returns:
        float64 (L,), nats per predicted token.

    Raises:
        InputError: no position with a target, or a model whose blocks are not found.
    """
    drops = PerformanceDrop(removals(), LanguageModelLoss())
    observe(model, batches, [drops], autocast_dtype=autocast_dtype)
    return drops.drop().value
