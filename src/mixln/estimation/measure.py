"""This machine's processor as a device: its speed at a recipe's own shapes, measured in about two seconds."""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable

import torch
from torch import Tensor

from mixln.estimation.devices import CPU, Device
from mixln.estimation.shape import ModelShape
from mixln.tasks.linear_cross_entropy import CHUNK_LOGITS

_SECONDS = 0.1
"""For each shape, repeated for at least so long; the best repetition counts."""

_FEWEST = 3  # repetitions, however busy the machine is

_MOST_TOKENS = 4096
"""Rows of the matrices at most: more do not make them faster."""

CPU_UTILIZATION = 0.86
"""Share of the measured speeds that a step reaches; calibrated on the 71M recipe alone (docs/reference/estimate.md)."""

ELEMENTWISE_SHARE = 0.33
"""Bytes per second of compiled kernels relative to a plain addition: they also exponentiate, convert and transpose.

Calibrated on a profile of the 71M recipe alone (docs/reference/estimate.md).
"""

LIBRARY_BYTES = 134 * 2**20
"""Memory outside of tensors; calibrated on the 71M recipe alone (docs/reference/estimate.md)."""

_FEWEST_ELEMENTS = 2**20
"""Fewest elements of the tensors whose addition measures the bandwidth: smaller ones fit in the cache, which does not
make compiled kernels faster."""

_REASON = "calibrated on the 71M recipe on one machine with AMX (docs/reference/estimate.md)"


def measure_cpu(shape: ModelShape, rows: int, dtype: torch.dtype) -> Device:
    """Return the processor with its speed at a model's shapes, with as many threads as PyTorch uses.

    The rate is the mean over the model's multiplications, each weighted by its operations (total operations / total
    time): narrow matrices are slower than large squares. The bandwidth is that of adding two tensors of the size of a
    micro-batch's residual stream (or larger, so that they are not in the cache), times `ELEMENTWISE_SHARE`.

    Args:
        shape: sizes of the model.
        rows: sequences in a micro-batch.
        dtype: that matrices are multiplied in.
    """
    tokens = min(rows * shape.sequence, _MOST_TOKENS)
    rate = _matrix_rate(shape, tokens, dtype)
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    return Device(
        name=CPU,
        description=f"this machine's processor, {torch.get_num_threads()} threads, measured at the model's shapes",
        kind="cpu",
        bfloat16_tflops=rate / 1e12,
        float32_tflops=rate / 1e12,
        memory_gib=memory,
        bandwidth=ELEMENTWISE_SHARE * _bandwidth(max(tokens * shape.hidden, _FEWEST_ELEMENTS)) / 1e9,
        interconnect=math.inf,
        utilization=CPU_UTILIZATION,
        utilization_reason=_REASON,
        library_bytes=LIBRARY_BYTES,
    )


def _matrix_rate(shape: ModelShape, tokens: int, dtype: torch.dtype) -> float:
    d, i, vocabulary, layers = shape.hidden, shape.intermediate, shape.vocabulary, shape.layers
    predicted = shape.predicted_share
    head_tokens = max(1, min(round(tokens * predicted), CHUNK_LOGITS // vocabulary))
    # (tokens, inputs, outputs) of a layer, and its inputs times outputs in the model, as far as tokens go through it
    kinds: list[tuple[tuple[int, int, int], float]] = [
        ((tokens, d, shape.query_width), 2 * layers * d * (shape.query_width + shape.key_value_width)),
        ((tokens, d, i), shape.inner_matrices * layers * d * i),
        ((tokens, i, d), layers * d * i),
        ((head_tokens, d, vocabulary), d * vocabulary * predicted),
    ]
    operations = sum(6.0 * weights * tokens for _, weights in kinds)
    seconds = sum(6.0 * weights * tokens / _layer_rate(*sizes, dtype) for sizes, weights in kinds)
    # scores and values, for every head
    heads = max(1, min(tokens // shape.sequence, 8)) * shape.heads
    attention = 12.0 * layers * shape.query_width * shape.sequence * tokens
    seconds += attention / _attention_rate(heads, shape.sequence, shape.head_size, dtype)
    return (operations + attention) / seconds


def _layer_rate(tokens: int, inputs: int, outputs: int, dtype: torch.dtype) -> float:
    """Operations per second of a linear layer: forward, gradient of its input, gradient of its weight."""
    x, weight = torch.randn(tokens, inputs).to(dtype), torch.randn(outputs, inputs).to(dtype)
    gradient = torch.randn(tokens, outputs).to(dtype)
    seconds = _best_seconds(lambda: torch.mm(x, weight.T))
    seconds += _best_seconds(lambda: torch.mm(gradient, weight))
    seconds += _best_seconds(lambda: torch.mm(gradient.T, x))
    return 6 * tokens * inputs * outputs / seconds


def _attention_rate(heads: int, sequence: int, head_size: int, dtype: torch.dtype) -> float:
    queries, keys = torch.randn(2, heads, sequence, head_size).to(dtype)
    seconds = _best_seconds(lambda: torch.bmm(torch.bmm(queries, keys.transpose(1, 2)), keys))
    return 4 * heads * sequence**2 * head_size / seconds


def _bandwidth(size: int) -> float:
    left, right, total = torch.randn(size), torch.randn(size), torch.empty(size)
    return 3 * 4 * size / _best_seconds(lambda: torch.add(left, right, out=total))


def _best_seconds(action: Callable[[], Tensor]) -> float:
    action()
    times: list[float] = []
    started = time.perf_counter()
    while len(times) < _FEWEST or time.perf_counter() - started < _SECONDS:
        before = time.perf_counter()
        action()
        times.append(time.perf_counter() - before)
    return min(times)
