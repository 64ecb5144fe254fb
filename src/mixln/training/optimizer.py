"""The optimiser of a run, and its schedule: linear warmup, then a cosine."""

from __future__ import annotations

import math
from collections.abc import Collection

import torch
from torch import nn
from torch.distributed.device_mesh import DeviceMesh

from mixln.training.config import OptimizerConfig
from mixln.training.distributed import mesh_of


def build_optimizer(
    config: OptimizerConfig, model: nn.Module, undecayed: Collection[str] = ()
) -> torch.optim.Optimizer:
    """Return Adam or AdamW; weight decay, if any, applies to matrices only.

    Args:
        config: how.
        model: whose parameters that need gradients are optimised.
        undecayed: names of parameters that weight decay leaves alone beside norms and biases.
    """
    # the fused kernel wants all tensors of a group distributed in the same way
    groups: dict[tuple[bool, DeviceMesh | None], list[nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            decayed = parameter.ndim >= 2 and name not in undecayed
            groups.setdefault((decayed, mesh_of(parameter)), []).append(parameter)
    kind = {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW}[config.name]
    return kind(
        [
            {"params": parameters, "weight_decay": config.weight_decay if decayed else 0.0}
            for (decayed, _), parameters in groups.items()
        ],
        lr=config.learning_rate,
        betas=(config.beta1, config.beta2),
        eps=config.epsilon,
        fused=True,
    )


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
