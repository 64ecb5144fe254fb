"""The optimiser of a run."""

from __future__ import annotations

import torch
from torch import nn
from torch.distributed.device_mesh import DeviceMesh

from mixln.training.config import OptimizerConfig
from mixln.training.distributed import mesh_of


def build_optimizer(config: OptimizerConfig, model: nn.Module) -> torch.optim.Optimizer:
    """Return Adam or AdamW; weight decay, if any, applies to matrices only."""
    # the fused kernel wants all tensors of a group distributed in the same way
    groups: dict[tuple[bool, DeviceMesh | None], list[nn.Parameter]] = {}
    for parameter in model.parameters():
        if parameter.requires_grad:
            groups.setdefault((parameter.ndim >= 2, mesh_of(parameter)), []).append(parameter)
    kind = {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW}[config.name]
    return kind(
        [
            {"params": parameters, "weight_decay": config.weight_decay if is_matrix else 0.0}
            for (is_matrix, _), parameters in groups.items()
        ],
        lr=config.learning_rate,
        betas=(config.beta1, config.beta2),
        eps=config.epsilon,
        fused=True,
    )
