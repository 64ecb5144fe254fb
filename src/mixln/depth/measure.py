"""All measures of a trained model from one pass over the batches."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import nn

from mixln.depth.forward import TokenBatch
from mixln.depth.growth import StreamGrowth
from mixln.depth.interventions import PerformanceDrop, removals
from mixln.depth.loss import EvaluationLoss
from mixln.depth.observation import observe
from mixln.depth.performance import LanguageModelLoss
from mixln.depth.similarity import Similarity


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
        model: a causal language model whose blocks `find_block_stack` finds.
        batches: (batch, sequence) tokens; read through once.
        autocast_dtype: autocast to this; None: the model's own precision.

    Raises:
        InputError: no position with a target, or a model whose blocks are not found.
    """
    similarity, growth = Similarity(), StreamGrowth()
    drops = PerformanceDrop(removals(), LanguageModelLoss())
    observe(model, batches, [similarity, growth, drops], autocast_dtype=autocast_dtype)
    return TrainedDepth(
        angular_distance=similarity.angular_distance().value,
        removal_loss_increase=drops.drop().value,
        variance=growth.variance().value,
        loss=EvaluationLoss(*drops.whole_total()),
    )
