"""Angular distance between the inputs of blocks (Gromov et al. 2024, arXiv 2403.17887)."""

from __future__ import annotations

import math
from collections.abc import Iterable

import torch
import torch.nn.functional as F
from torch import nn

from mixln.depth.batches import ModelBatch
from mixln.depth.forward import TokenBatch
from mixln.depth.observation import observe
from mixln.depth.similarity import Similarity
from mixln.depth.sums import at_least_float32


def angular_distance(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """d(x, y) = arccos(x.y / (|x| |y|)) / pi, in [0, 1]: 0 parallel, 0.5 orthogonal, 1 opposite.

    Computed on unit vectors u, v as 2 atan2(|u - v|, |u + v|) / pi, which is the same angle, but exact near 0 and 1,
    where arccos loses half of the digits, and needs no clamp. A zero vector is at 0.5 from any other, at 0 from another
    zero vector.

    Args:
        x: (..., channels).
        y: (..., channels).

    Returns:
        (...), float32 (float64 for float64 input).
    """
    return _unit_distance(_unit(x), _unit(y))


def angular_distances(
    model: nn.Module, batches: Iterable[TokenBatch | ModelBatch], *, autocast_dtype: torch.dtype | None = None
) -> torch.Tensor:
    """Angular distance d(l, n) = arccos(cos(x_l, x_{l+n})) / pi between the inputs of blocks, averaged over tokens.

    x_l is the input of block l, x_{L+1} the last block's output before the final norm; a small d(l, n) says that the n
    blocks from l on change little (Gromov et al. 2024, arXiv 2403.17887). The average runs over the positions with a
    target (`targets != -100`).

    Args:
        model: a causal language model that `find_block_stack` knows.
        batches: (batch, sequence) tokens; read through once.
        autocast_dtype: autocast to this; None: the model's own precision.

    Returns:
        float64 (L, L): row n-1, column l-1 holds d(l, n), in [0, 1]; nan where l + n > L + 1.

    Raises:
        InputError: no position with a target, or a model whose blocks are not found.
    """
    similarity = Similarity()
    observe(model, batches, [similarity], autocast_dtype=autocast_dtype)
    return similarity.angular_distance().value


def triangle(matrix: torch.Tensor) -> list[list[float]]:
    """The entries of (L, L) angular distances that exist: row n-1 is d(1, n) .. d(L-n+1, n)."""
    return [row[: len(matrix) - index].tolist() for index, row in enumerate(matrix)]


def _unit(x: torch.Tensor) -> torch.Tensor:
    x = at_least_float32(x)
    largest = x.abs().amax(-1, keepdim=True)
    return F.normalize(x / largest.clamp_min(torch.finfo(x.dtype).tiny), dim=-1)  # squares neither over- nor underflow


def _unit_distance(u: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    return 2 / math.pi * torch.atan2((u - v).norm(dim=-1), (u + v).norm(dim=-1))
