"""Admin's profiling pass: one forward pass sets the learned residual scales (Liu et al. 2020, 2004.08249)."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

import torch
from torch import nn

from mixln.placement.residual import Residual

Moments = torch.Tensor
"""(sum, sum of squares, count) of some numbers, float64, shape (3,)."""


def has_residual_scales_to_profile(module: nn.Module) -> bool:
    """Whether any residual connection of a model has a learned scale."""
    return bool(_learned(module))


def profile_residual_scales(
    module: nn.Module, run: Callable[[], object], *, reduce: Callable[[Moments], Moments] = lambda moments: moments
) -> list[float]:
    """Set every learned residual scale omega from one forward pass, and return them, first sublayer to last.

    Number the sublayers with a learned scale i = 1, 2, ... in the order in which they run. Each is set when the pass
    reaches it, and what it does is measured with the scale that it got:

        omega_1 = 1,    omega_(i+1) = sqrt( Var(omega_i * x_i) + Var(F_i(x_i)) )

    with the variances over all tokens and channels, and omega the same in every channel. Works on sharded weights
    (FSDP2): all processes get the same scales if `reduce` adds up over them.

    Args:
        module: the model with its initial weights; its mode (training or evaluation) and gradients do not change.
        run: runs its forward once, on a batch of real data.
        reduce: adds up moments over the processes that have a share of the batch; by default there is only one.

    Returns:
        The values that were set; empty if there are no learned scales.
    """
    residuals = _learned(module)
    found: dict[Residual, float] = {}
    upcoming = 1.0

    def before(residual: Residual, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        nonlocal upcoming
        hidden_states, sublayer, *rest = args
        omega = found[residual] = upcoming
        # if weights are gathered for the forward, this fills the gathered copy, not the shards
        residual.get_parameter("residual_scale").data.fill_(omega)

        def measured(branch_input: torch.Tensor) -> torch.Tensor:
            nonlocal upcoming
            output = sublayer(branch_input)
            upcoming = (_variance(hidden_states, reduce) * omega**2 + _variance(output, reduce)) ** 0.5
            return output

        return (hidden_states, measured, *rest), kwargs

    with ExitStack() as hooks, torch.no_grad():
        for residual in residuals:
            hooks.enter_context(residual.register_forward_pre_hook(before, with_kwargs=True))
        run()
    return [found[residual] for residual in residuals]


def set_residual_scales(module: nn.Module, values: list[float]) -> None:
    """Set the learned residual scales of a model, sharded or not, to what `profile_residual_scales` returned."""
    residuals = _learned(module)
    with torch.no_grad():
        for residual, value in zip(residuals, values, strict=True):
            residual.get_parameter("residual_scale").fill_(value)


def _variance(hidden_states: torch.Tensor, reduce: Callable[[Moments], Moments]) -> float:
    values = hidden_states.detach().double()
    count = torch.tensor(float(values.numel()), dtype=torch.float64, device=values.device)
    total, square, number = reduce(torch.stack((values.sum(), values.pow(2).sum(), count))).tolist()
    return square / number - (total / number) ** 2


def _learned(module: nn.Module) -> list[Residual]:
    residuals = [found for found in module.modules() if isinstance(found, Residual)]
    return [found for found in residuals if isinstance(found.residual_scale, nn.Parameter)]
