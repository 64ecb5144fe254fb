"""The machine's own peak: matrix multiplication in the precision of the contenders, and nothing else."""

from __future__ import annotations

import statistics
import time

import torch

from benchmarks.settings import SEQUENCE_LENGTH, VOCABULARY, Settings

_SQUARES = (1024, 2048, 4096)
_SECONDS = 2.0
"""For each shape, repeated for at least so long; the median counts, since training lasts too."""


def matrix_peak(settings: Settings, device: torch.device) -> dict[str, float]:
    """Return the floating-point operations per second sustained at each shape, 2 * m * k * n for (m, k) x (k, n).

    The shapes are large squares, and those of the model: (tokens, d) x (d, intermediate), the way back, and the head.
    """
    model = settings.recipe().model
    tokens = settings.micro_batch_size * SEQUENCE_LENGTH
    shapes = [(side, side, side) for side in _SQUARES]
    shapes += [
        (tokens, model.hidden_size, model.intermediate_size),
        (tokens, model.intermediate_size, model.hidden_size),
        (tokens, model.hidden_size, VOCABULARY[settings.size]),
    ]
    dtype = torch.bfloat16 if settings.precision == "bfloat16" else torch.float32
    return {f"{m} x {k} x {n}": _sustained(m, k, n, device, dtype) for m, k, n in shapes}


def _sustained(m: int, k: int, n: int, device: torch.device, dtype: torch.dtype) -> float:
    left = torch.randn(m, k, device=device, dtype=dtype)
    right = torch.randn(k, n, device=device, dtype=dtype)
    product = torch.empty(m, n, device=device, dtype=dtype)
    torch.mm(left, right, out=product)
    seconds: list[float] = []
    while sum(seconds) < _SECONDS:
        seconds.append(_once(left, right, product))
    return 2 * m * k * n / statistics.median(seconds)


def _once(left: torch.Tensor, right: torch.Tensor, product: torch.Tensor) -> float:
    _wait(left.device)
    before = time.perf_counter()
    torch.mm(left, right, out=product)
    _wait(left.device)
    return time.perf_counter() - before


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
