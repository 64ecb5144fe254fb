"""The machine's own peak: matrix multiplication in the precision of the contenders, and nothing else."""

from __future__ import annotations

import math
import statistics

import torch

from benchmarks.meter import clock_of
from benchmarks.settings import SEQUENCE_LENGTH, Settings

_SQUARES = {"cpu": (1024, 2048, 4096), "cuda": (4096, 8192, 16_384)}
"""Sides of large squares: a GPU comes to its peak with larger ones than a processor."""

SECONDS = 2.0
"""For each shape, repeated for at least so long; the median counts, since training lasts too."""

_SHORTEST = 0.02
"""Seconds that are timed at once: calls shorter than that are timed several together."""


def matrix_peak(settings: Settings, device: torch.device, seconds: float = SECONDS) -> dict[str, float]:
    """Return the floating-point operations per second sustained at each shape, 2 * m * k * n for (m, k) x (k, n).

    The shapes are large squares, and those of the model: (tokens, d) x (d, intermediate), the way back, and the head.
    """
    model = settings.recipe().model
    tokens = settings.micro_batch_size * SEQUENCE_LENGTH
    shapes = [(side, side, side) for side in _SQUARES[device.type]]
    shapes += [
        (tokens, model.hidden_size, model.intermediate_size),
        (tokens, model.intermediate_size, model.hidden_size),
        (tokens, model.hidden_size, settings.vocabulary),
    ]
    dtype = torch.bfloat16 if settings.precision == "bfloat16" else torch.float32
    return {f"{m} x {k} x {n}": _sustained((m, k, n), device, dtype, seconds) for m, k, n in shapes}


def _sustained(shape: tuple[int, int, int], device: torch.device, dtype: torch.dtype, least: float) -> float:
    m, k, n = shape
    left = torch.randn(m, k, device=device, dtype=dtype)
    right = torch.randn(k, n, device=device, dtype=dtype)
    product = torch.empty(m, n, device=device, dtype=dtype)
    _seconds_of(left, right, product, 1)  # loads what multiplies
    calls = math.ceil(_SHORTEST / max(_seconds_of(left, right, product, 1), 1e-6))
    seconds: list[float] = []
    while sum(seconds) < least:
        seconds.append(_seconds_of(left, right, product, calls))
    return 2 * m * k * n * calls / statistics.median(seconds)


def _seconds_of(left: torch.Tensor, right: torch.Tensor, product: torch.Tensor, calls: int) -> float:
    clock = clock_of(left.device)
    clock.mark()
    for _ in range(calls):
        torch.mm(left, right, out=product)
    clock.mark()
    return sum(clock.seconds())
