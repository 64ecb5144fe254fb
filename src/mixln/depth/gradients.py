"""Gradient norm of each layer (Mix-LN: Li, Yin, Liu 2024, arXiv 2412.13795)."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import torch
from torch import nn

from mixln.depth.forward import TokenBatch, autocast, batch_logits, counted_positions, evaluation_mode
from mixln.depth.loss import total_cross_entropy
from mixln.depth.stack import find_block_stack
from mixln.depth.sums import no_tokens_error, where_float64_is


def gradient_norm_by_layer(
    model: nn.Module, batches: Iterable[TokenBatch], *, autocast_dtype: torch.dtype | None = None
) -> torch.Tensor:
    """|| d loss / d theta_l ||_2 over all parameters theta_l of block l, loss = total loss / total predicted tokens.

    The gradient is that of the loss over all batches together (not a mean of per-batch norms), at the model's current
    weights, dropout off (Mix-LN: Li, Yin, Liu 2024, arXiv 2412.13795). Existing `.grad`s, `requires_grad` flags and the
    mode are left as they were; frozen parameters count too.

    Memory: the blocks' gradients summed so far (float32, float64 for float64 models), those of the current batch, and
    its activations (gradient checkpointing works in training mode only, so it does not help here: use small batches).

    Args:
        model: a causal language model that `find_block_stack` knows.
        batches: (batch, sequence) tokens; read through once.
        autocast_dtype: autocast to this; None: the model's own precision.

    Returns:
        float64 (L,), nats per predicted token and unit of weight.

    Raises:
        InputError: no position with a target, or a model whose blocks are not found.
    """
    layers = find_block_stack(model).layers
    parameters = [parameter for parameter in layers.parameters() if parameter.is_floating_point()]
    totals = {p: torch.zeros_like(p, dtype=torch.promote_types(p.dtype, torch.float32)) for p in parameters}
    num_tokens = 0
    with evaluation_mode(model), _all_requiring_grad(parameters), torch.enable_grad():
        for batch in batches:
            with autocast(model, autocast_dtype):
                loss = total_cross_entropy(batch_logits(model, batch), batch.targets)
            gradients = torch.autograd.grad(loss, parameters, allow_unused=True, materialize_grads=True)
            for parameter, gradient in zip(parameters, gradients, strict=True):
                totals[parameter] += gradient
            num_tokens += int(counted_positions(batch).sum())
    if num_tokens == 0:
        raise no_tokens_error()
    norms = [_norm([totals[p] for p in layer.parameters() if p in totals]) for layer in layers]
    return torch.tensor(norms, dtype=torch.float64) / num_tokens


def _norm(tensors: list[torch.Tensor]) -> float:
    return math.hypot(*(torch.linalg.vector_norm(where_float64_is(t), dtype=torch.float64).item() for t in tensors))


@contextmanager
def _all_requiring_grad(parameters: Iterable[nn.Parameter]) -> Iterator[None]:
    frozen = [parameter for parameter in parameters if not parameter.requires_grad]
    for parameter in frozen:
        parameter.requires_grad_(True)
    try:
        yield
    finally:
        for parameter in frozen:
            parameter.requires_grad_(False)
