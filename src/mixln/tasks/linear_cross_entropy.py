"""The loss of the LM head without all logits in memory at once."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from mixln.models.encoding import IGNORED_TARGET

LogitsLoss = Callable[[Tensor, Tensor], Tensor]
"""Maps (logits, targets) of some tokens to their summed loss, and overwrites the logits with its gradient by them."""

CHUNK_LOGITS = 2**26
"""Logits held at once; 128 MiB in bfloat16. Fewer make matrices too flat to multiply fast."""


def logits_loss(logits: Tensor, targets: Tensor) -> Tensor:
    """Return the sum over tokens of -log softmax(logits)[target], in nats, and put its gradient in the logits' place.

    Softmax and sum are at least float32. A token with target -100 counts nothing.

    Args:
        logits: (tokens, vocabulary), any floating dtype; overwritten by softmax(logits) - one_hot(targets).
        targets: (tokens,), int64.

    Returns:
        A scalar, float32 (float64 for float64 logits).
    """
    exact = logits if logits.dtype == torch.float64 else logits.float()
    predicted = targets != IGNORED_TARGET
    index = targets.clamp(min=0)[:, None]
    log_sum = exact.logsumexp(-1, keepdim=True)
    losses = (log_sum - exact.gather(-1, index)).squeeze(-1)
    # a comparison rather than a scatter: it fuses with the exponential
    one_hot = torch.arange(logits.shape[-1], device=logits.device)[None, :] == index
    logits.copy_(((exact - log_sum).exp() - one_hot.to(exact.dtype)) * predicted[:, None])
    return (losses * predicted).sum()


def transposed_copy(matrix: Tensor, dtype: torch.dtype) -> Tensor:
    """Return the transpose of a matrix in another dtype, row by row in memory."""
    return matrix.T.to(dtype).contiguous()


def add_transposed(total: Tensor, product: Tensor) -> Tensor:
    """Add the transpose of `product`, (columns, rows), to `total`, (rows, columns), in place."""
    return total.add_(product.T.to(total.dtype))


@dataclass(frozen=True)
class HeadKernels:
    """What the loss of the head does besides multiplying matrices; each may be a compiled function."""

    loss: LogitsLoss = logits_loss
    transposed_copy: Callable[[Tensor, torch.dtype], Tensor] = transposed_copy
    add_transposed: Callable[[Tensor, Tensor], Tensor] = add_transposed

    @classmethod
    def compiled(cls) -> HeadKernels:
        """Return compiled ones."""
        compiled = partial(torch.compile, dynamic=False, fullgraph=True)
        return cls(compiled(logits_loss), compiled(transposed_copy), compiled(add_transposed))


def linear_cross_entropy(
    hidden_states: Tensor,
    weight: Tensor,
    targets: Tensor,
    *,
    bias: Tensor | None = None,
    kernels: HeadKernels | None = None,
) -> Tensor:
    """Return the summed cross-entropy of `hidden_states @ weight.T + bias` with `targets`, in nats.

    Equal to `F.cross_entropy(F.linear(hidden_states, weight, bias).float(), targets, reduction="sum")`, computed some
    tokens at a time: each chunk's logits give their share of all gradients at once and are forgotten, so that memory
    does not grow with tokens x vocabulary, and nothing is computed twice. Matrices are multiplied in the autocast
    dtype, if any; the gradients of weight and bias are summed in their own dtypes.

    PyTorch's own chunked `linear_cross_entropy` does the same, but runs uncompiled: on a CPU it took four times as long
    as not chunking at all (PyTorch 2.14, 4096 tokens, 512 x 32000 head, bfloat16).

    Args:
        hidden_states: (tokens, hidden), the output of the final norm.
        weight: (vocabulary, hidden), the head's.
        targets: (tokens,), int64; -100: not predicted.
        bias: (vocabulary,), the head's; None: it has none.
        kernels: compiled ones; None: uncompiled.

    Returns:
        A scalar, float32 (float64 for float64 input). Gradients flow to hidden states, weight and bias, once.
    """
    kernels = kernels or HeadKernels()
    device = hidden_states.device.type
    dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else weight.dtype
    learned = [tensor for tensor in (hidden_states, weight, bias) if tensor is not None and tensor.requires_grad]
    with torch.autocast(device, enabled=False):
        if torch.is_grad_enabled() and learned:
            result: Tensor = _LinearCrossEntropy.apply(hidden_states, weight, bias, targets, dtype, kernels)  # pyright: ignore[reportAssignmentType]
            return result
        with torch.no_grad():
            low_bias = None if bias is None else bias.to(dtype)
            chunks = _chunks(hidden_states.to(dtype), weight.to(dtype).T, low_bias, targets)
            return torch.stack([kernels.loss(logits, chunk_targets) for logits, chunk_targets, _ in chunks]).sum()


def _chunks(
    hidden_states: Tensor, columns: Tensor, bias: Tensor | None, targets: Tensor
) -> Iterator[tuple[Tensor, Tensor, slice]]:
    """Yield (logits, targets, which tokens) of one chunk after the other; all logits in the same memory.

    Args:
        hidden_states: (tokens, hidden).
        columns: (hidden, vocabulary), the transpose of the head's weight.
        bias: (vocabulary,), of the same dtype, or None.
        targets: (tokens,).
    """
    tokens, vocabulary = hidden_states.shape[0], columns.shape[1]
    count = max(1, -(-tokens // max(1, CHUNK_LOGITS // vocabulary)))
    size = -(-tokens // count)  # equal sizes, so that a compiled loss is compiled once
    memory = hidden_states.new_empty(size, vocabulary)
    for start in range(0, tokens, size):
        part = slice(start, min(start + size, tokens))
        logits = memory[: part.stop - part.start]
        if bias is None:
            torch.mm(hidden_states[part], columns, out=logits)
        else:
            torch.addmm(bias, hidden_states[part], columns, out=logits)
        yield logits, targets[part], part


class _LinearCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        hidden_states: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        targets: Tensor,
        dtype: torch.dtype,
        kernels: HeadKernels,
    ) -> Tensor:
        low, low_weight, low_bias = hidden_states.to(dtype), weight.to(dtype), None if bias is None else bias.to(dtype)
        # oneDNN multiplies two bfloat16 matrices half as fast if one of them is a transposed view: small ones are
        # transposed in memory first, so that the large one, the logits' gradient, can stay as it is
        row_major = low.device.type == "cpu" and dtype == torch.bfloat16
        columns = kernels.transposed_copy(weight, dtype) if row_major else low_weight.T
        hidden_gradient = torch.empty_like(low)
        weight_gradient = torch.zeros_like(weight)
        bias_gradient = None if bias is None else torch.zeros_like(bias)
        losses: list[Tensor] = []
        for logits, chunk_targets, part in _chunks(low, columns, low_bias, targets):
            losses.append(kernels.loss(logits, chunk_targets))
            gradient = logits  # that is what it holds now
            torch.mm(gradient, low_weight, out=hidden_gradient[part])
            if row_major:
                kernels.add_transposed(weight_gradient, low[part].T.contiguous() @ gradient)
            else:
                weight_gradient.add_(gradient.T @ low[part])
            if bias_gradient is not None:
                bias_gradient.add_(gradient.sum(0, dtype=bias_gradient.dtype))
        ctx.save_for_backward(hidden_gradient, weight_gradient, bias_gradient)
        ctx.hidden_dtype = hidden_states.dtype
        return torch.stack(losses).sum()

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor, Tensor | None, None, None, None]:
        hidden_gradient, weight_gradient, bias_gradient = ctx.saved_tensors
        (factor,) = gradients
        hidden = (hidden_gradient * factor).to(ctx.hidden_dtype)
        # in place: it is as large as the head, and a graph is walked backward once
        bias = None if bias_gradient is None else bias_gradient.mul_(factor)
        return hidden, weight_gradient.mul_(factor), bias, None, None, None
