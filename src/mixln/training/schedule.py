"""The learning-rate schedule: linear warmup, then a cosine."""

from __future__ import annotations

import math

from mixln.training.config import OptimizerConfig


def learning_rate(config: OptimizerConfig, steps: int, step: int) -> float:
    """Return the learning rate of step `step`, from 1 to `steps`.

    With peak p, W warmup steps, S steps and final fraction f (Mix-LN, section 4: cosine to 10 % of the peak):

        step <= W:  p * step / W
        step >  W:  p * (f + (1 - f) * (1 + cos(pi * (step - W) / (S - W))) / 2)
    """
    peak, warmup = config.learning_rate, config.warmup(steps)
    if step <= warmup:
        return peak * step / warmup
    final = config.final_learning_rate_fraction
    progress = (step - warmup) / (steps - warmup)
    return peak * (final + (1 - final) * (1 + math.cos(math.pi * progress)) / 2)
