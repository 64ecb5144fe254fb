"""How much faster this processor multiplies matrices in bfloat16 than in float32: measured in well below a second."""

from __future__ import annotations

import statistics
import time
from functools import cache

import torch
from torch import Tensor
from torch.nn.functional import linear

_SECONDS = 0.3
"""The pairs of measurements go on for so long."""

_FEWEST_PAIRS, _MOST_PAIRS = 3, 30

_LARGEST = 1024
"""Of the matrices' sides, and of tokens: more only take longer."""


def bfloat16_speedup(hidden: int, intermediate: int, tokens: int) -> float:
    """Return the time of a feed-forward's products in float32, divided by their time under bfloat16 autocast.

    The products are those of a step: (tokens, hidden) x (hidden, intermediate) and the way back, with the gradients of
    input and weights, and, under autocast, the casts that go with them; sizes up to 1024, of which larger ones are
    made. Both precisions are measured in turns, and the median of the ratios counts, since what else the machine does
    slows both of a pair. Measured once in a process for the same sizes and number of threads.

    It draws no number from PyTorch's global generator, and changes no setting.

    Args:
        hidden: width of the residual stream.
        intermediate: width of the feed-forward's inner layer.
        tokens: of a micro-batch.
    """
    sizes = (min(size, _LARGEST) for size in (hidden, intermediate, tokens))
    return _measured(*sizes, torch.get_num_threads())


@cache
def _measured(hidden: int, intermediate: int, tokens: int, _threads: int) -> float:
    generator = torch.Generator().manual_seed(0)

    def leaf(*shape: int) -> Tensor:
        drawn = torch.randn(shape, generator=generator, dtype=torch.float32, device="cpu")
        return drawn.requires_grad_()

    with torch.inference_mode(mode=False), torch.enable_grad():
        stream, up, down = leaf(tokens, hidden), leaf(intermediate, hidden), leaf(hidden, intermediate)

        def seconds(*, low: bool) -> float:
            before = time.perf_counter()
            with torch.autocast("cpu", torch.bfloat16, enabled=low):
                result = linear(linear(stream, up), down)
            torch.autograd.grad(result.sum(), (stream, up, down))
            return time.perf_counter() - before

        seconds(low=False)
        seconds(low=True)
        ratios: list[float] = []
        started = time.perf_counter()
        while len(ratios) < _FEWEST_PAIRS or (len(ratios) < _MOST_PAIRS and time.perf_counter() - started < _SECONDS):
            full, low = seconds(low=False), seconds(low=True)
            ratios.append(full / low)
    return statistics.median(ratios)
