"""All measures of a trained model from one pass over the batches."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import nn

from mixln.depth.angular import token_angular_distances
from mixln.depth.forward import TokenBatch, autocast, counted_positions, evaluation_mode
from mixln.depth.loss import EvaluationLoss
from mixln.depth.removal import RemovalLosses, recorded_loss
from mixln.depth.stack import find_block_stack
from mixln.depth.sums import TokenMean
from mixln.depth.variance import token_variances


@dataclass(frozen=True)
class TrainedDepth:
    """What each of the L blocks of a trained model does; float64 tensors on the CPU.

    Attributes:
        angular_distance: (L, L), as `angular_distances` returns it; `triangle` gives it as rows.
        removal_loss_increase: (L,), as `removal_loss_increase` returns it; positive means harm.
        variance: (L + 1,), as `variance_by_layer` returns it.
        loss: the validation loss on the same batches, as `evaluation_loss` returns it.
    """

    angular_distance: torch.Tensor
    removal_loss_increase: torch.Tensor
    variance: torch.Tensor
    loss: EvaluationLoss


def measure_trained_depth(
    model: nn.Module, batches: Iterable[TokenBatch], *, autocast_dtype: torch.dtype | None = None
) -> TrainedDepth:
    """Angular distance, removal loss increase, variance and loss: one forward pass per batch, shared by all four.

    Args:
        model: a causal language model that `find_block_stack` knows.
        batches: (batch, sequence) tokens; read through once.
        autocast_dtype: autocast to this; None: the model's own precision.

    Raises:
        InputError: no position with a target; a model whose blocks are not found, or whose logits are not
            head(final_norm(output of the last block)).
    """
    stack = find_block_stack(model)
    distance, variance, removal = TokenMean(), TokenMean(), RemovalLosses(stack)
    with evaluation_mode(model), torch.no_grad(), autocast(model, autocast_dtype):
        for batch in batches:
            record, loss = recorded_loss(model, stack, batch)
            mask = counted_positions(batch)
            removal.update(record, loss, batch.targets)
            distance.update(token_angular_distances(record.hidden_states, mask))
            variance.update(token_variances(record.hidden_states, mask))
    return TrainedDepth(
        angular_distance=distance.result(),
        removal_loss_increase=removal.result(),
        variance=variance.result(),
        loss=removal.loss,
    )
