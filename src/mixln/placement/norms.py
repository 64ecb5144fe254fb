"""Norms for use without transformers. Models in `mixln.models` pass their architecture's own norm class instead."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

from torch import nn

from mixln.placement.plan import NORM, NormPlan, PlacementError
from mixln.placement.residual import NormFactory


def norm_factory(hidden_size: int, kind: Literal["rmsnorm", "layernorm"] = "rmsnorm", eps: float = 1e-6) -> NormFactory:
    """Return a factory of PyTorch's own norms over the last dimension, of size `hidden_size`.

    RMSNorm: w * x / sqrt(mean(x^2) + eps). LayerNorm: w * (x - mean(x)) / sqrt(var(x) + eps) + b.

    Raises:
        PlacementError: `kind` is neither; or, from the factory, a plan asks for a norm that it cannot build.
    """
    builders: dict[str, Callable[[], nn.Module]] = {
        "rmsnorm": lambda: nn.RMSNorm(hidden_size, eps=eps),
        "layernorm": lambda: nn.LayerNorm(hidden_size, eps=eps),
    }
    if kind not in builders:
        raise PlacementError(f"unknown kind of norm {kind!r}. Valid: {', '.join(builders)}")
    return architecture_norm(builders[kind])


def architecture_norm(build: Callable[[], nn.Module]) -> NormFactory:
    """Return the factory of a model that has one norm class: `build()` for every plan that asks for it.

    Raises (from the factory):
        PlacementError: a plan asks for another kind of norm, or for one over groups of channels.
    """

    def build_planned(plan: NormPlan) -> nn.Module:
        if plan != NORM:
            raise PlacementError(f"this model cannot build the norm {plan}; it has only its architecture's own")
        return build()

    return build_planned
