"""The modes in which a module is run."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import torch
from torch import nn


@contextmanager
def evaluation_mode(model: nn.Module) -> Iterator[None]:
    """Dropout off inside the block; each module gets back the mode that it had, whatever happens."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training


@contextmanager
def all_requiring_grad(parameters: Iterable[nn.Parameter]) -> Iterator[None]:
    """Within the block every one of the parameters requires a gradient; those that were frozen are so again after."""
    frozen = [parameter for parameter in parameters if not parameter.requires_grad]
    for parameter in frozen:
        parameter.requires_grad_(True)
    try:
        yield
    finally:
        for parameter in frozen:
            parameter.requires_grad_(False)


def autocast(device: torch.device, dtype: torch.dtype | None) -> torch.autocast:
    """Return the context that multiplies matrices in `dtype`; None: in the weights' own, also in another autocast."""
    return torch.autocast(device.type, dtype=dtype, enabled=dtype is not None)
