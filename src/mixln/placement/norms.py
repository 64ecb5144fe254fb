"""Norms that architectures lack, and factories of the norms that a plan asks for.

Models in `mixln.models` pass their architecture's own norm class to `ArchitectureNorm`; `norm_factory` builds PyTorch's
own norms, without transformers.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import nn

from mixln.placement.plan import NORM, NormPlan, PlacementError


class GroupedNorm(nn.Module):
    """Each token's channels normalised in groups of neighbours, in float32 at least:

        y = w * (x - mean_g) / sqrt(mean_g((x - mean_g)^2) + eps) + b

    with the means over the channels of x's own group. Without centring, mean_g in the formula is 0 (RMSNorm).

    Args:
        width: channels; x is of shape (..., width).
        groups: must divide the width.
        eps: added to the variance.
        centered: whether the mean is subtracted (LayerNorm) or not (RMSNorm).
        has_weight: whether there is a learned w of shape (width,), else 1.
        has_bias: whether there is a learned b of shape (width,), else 0.

    Raises:
        PlacementError: the groups do not divide the width.
    """

    def __init__(
        self, width: int, groups: int, eps: float, *, centered: bool, has_weight: bool = True, has_bias: bool = False
    ) -> None:
        super().__init__()
        if width % groups != 0:
            raise PlacementError(f"{groups} groups of channels do not divide a width of {width}")
        self.groups, self.eps, self.centered = groups, eps, centered
        self.weight = nn.Parameter(torch.ones(width)) if has_weight else None
        self.bias = nn.Parameter(torch.zeros(width)) if has_bias else None

    def reset_parameters(self) -> None:
        """Set w to 1 and b to 0."""
        if self.weight is not None:
            nn.init.ones_(self.weight)
        if self.bias is not None:
            nn.init.zeros_(self.bias)

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        """Return y for x = `hidden_states`, of the same shape and dtype."""
        precise = hidden_states.to(torch.promote_types(hidden_states.dtype, torch.float32))
        grouped = precise.unflatten(-1, (self.groups, -1))
        if self.centered:
            grouped = grouped - grouped.mean(-1, keepdim=True)
        grouped = grouped * torch.rsqrt(grouped.pow(2).mean(-1, keepdim=True) + self.eps)
        output = grouped.flatten(-2).to(hidden_states.dtype)
        if self.weight is not None:
            output = output * self.weight
        return output if self.bias is None else output + self.bias

    def extra_repr(self) -> str:
        """Show the groups."""
        return f"groups={self.groups}, eps={self.eps}, centered={self.centered}"


class PointwiseNorm(nn.Module):
    """A replacement of a norm that takes no mean over channels: y = w * squash(alpha * x) + b.

    alpha is a learned scalar, w and b are of shape (width,) and start at 1 and 0.

    Args:
        width: channels; x is of shape (..., width).
        slope: initial value of alpha.
    """

    def __init__(self, width: int, slope: float) -> None:
        super().__init__()
        self.slope = slope
        # of shape (1,), not (): FSDP2 cannot shard a scalar
        self.alpha = nn.Parameter(torch.full((1,), slope))
        self.weight = nn.Parameter(torch.ones(width))
        self.bias = nn.Parameter(torch.zeros(width))

    def reset_parameters(self) -> None:
        """Set alpha to its initial value, w to 1 and b to 0."""
        nn.init.constant_(self.alpha, self.slope)
        nn.init.ones_(self.weight)
        nn.init.zeros_(self.bias)

    def squash(self, scaled: torch.Tensor) -> torch.Tensor:
        """Return the function of alpha * x, value by value."""
        raise NotImplementedError

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        """Return y for x = `hidden_states`, of the same shape."""
        return self.weight * self.squash(self.alpha * hidden_states) + self.bias


class DynamicTanh(PointwiseNorm):
    """DyT: y = w * tanh(alpha * x) + b (Zhu et al. 2025, arXiv 2503.10622); the paper's default slope is 0.5."""

    def squash(self, scaled: torch.Tensor) -> torch.Tensor:
        """Return tanh(alpha * x)."""
        return torch.tanh(scaled)


class DynamicErf(PointwiseNorm):
    """Derf: y = w * erf(alpha * x + s) + b, s learned, initially 0 (Chen et al. 2025, arXiv 2512.10938)."""

    def __init__(self, width: int, slope: float) -> None:
        super().__init__(width, slope)
        self.shift = nn.Parameter(torch.zeros(1))

    def reset_parameters(self) -> None:
        """Set alpha to its initial value, w to 1, b and s to 0."""
        super().reset_parameters()
        nn.init.zeros_(self.shift)

    def squash(self, scaled: torch.Tensor) -> torch.Tensor:
        """Return erf(alpha * x + s)."""
        return torch.erf(scaled + self.shift)


POINTWISE: dict[str, Callable[[int, float], nn.Module]] = {"dyt": DynamicTanh, "derf": DynamicErf}
"""Kinds of norm that every factory builds, from (width, slope)."""


def norm_factory(
    hidden_size: int, kind: Literal["rmsnorm", "layernorm"] = "rmsnorm", eps: float = 1e-6
) -> ArchitectureNorm:
    """Return a factory of PyTorch's own norms over the last dimension, of size `hidden_size` unless another is given.

    RMSNorm: w * x / sqrt(mean(x^2) + eps). LayerNorm: w * (x - mean(x)) / sqrt(var(x) + eps) + b.

    Raises:
        PlacementError: `kind` is neither; or, from the factory, as `ArchitectureNorm`.
    """
    builders: dict[str, Callable[[int], nn.Module]] = {
        "rmsnorm": lambda width: nn.RMSNorm(width, eps=eps),
        "layernorm": lambda width: nn.LayerNorm(width, eps=eps),
    }
    if kind not in builders:
        raise PlacementError(f"unknown kind of norm {kind!r}. Valid: {', '.join(builders)}")
    is_layernorm = kind == "layernorm"
    return ArchitectureNorm(builders[kind], hidden_size, eps=eps, centered=is_layernorm, has_bias=is_layernorm)


@dataclass(frozen=True)
class ArchitectureNorm:
    """The norm factory of a model with a norm of its own (see `NormFactory`), and what that norm is.

    Attributes:
        build: the architecture's own norm over a width.
        hidden_size: the width if none is given.
        eps: of that norm.
        centered: whether it subtracts the mean, as LayerNorm does and RMSNorm does not.
        has_weight: whether it has a learned gain.
        has_bias: whether it has a learned bias.
    """

    build: Callable[[int], nn.Module]
    hidden_size: int
    eps: float
    centered: bool = False
    has_weight: bool = True
    has_bias: bool = False

    def check(self) -> None:
        """Make sure that the norm computes what is said of it here, which all that folds or replaces norms relies on.

            N(x) = w * (x - mean(x)) / sqrt(mean((x - mean(x))^2) + eps) + b

        with the mean taken off only if `centered`, w and b only if it has them.

        Raises:
            PlacementError: it does not, as the norms of Gemma, which multiply with 1 + w.
        """
        width = 4
        described = GroupedNorm(
            width, 1, self.eps, centered=self.centered, has_weight=self.has_weight, has_bias=self.has_bias
        )
        with torch.device("cpu"), torch.no_grad():
            norm, described = self.build(width).float(), described.to_empty(device="cpu").float()
            if any(parameter.is_meta for parameter in norm.parameters()):  # whoever builds models without memory
                return
            for number, parameter in enumerate(described.parameters(), start=2):
                parameter.copy_(torch.linspace(number, -number, width))
            state = described.state_dict()
            # so small that eps shows
            x = torch.tensor([[[1.0, -2.0, 3.0, 1.5]]], dtype=torch.float32) * self.eps**0.5
            if norm.state_dict().keys() == state.keys():
                norm.load_state_dict(state)
                if torch.allclose(norm(x), described(x), rtol=1e-3, atol=1e-4):
                    return
        raise PlacementError(
            f"the norm {type(norm).__name__} does not compute weight * x / scale + bias, or not with the eps, the mean "
            "and the parameters that its `norm_factory` says (norms of 1 + weight are not supported): correct that, or "
            "build another norm there"
        )

    def __call__(self, plan: NormPlan, width: int | None = None) -> nn.Module:
        """Return the norm that a plan asks for.

        Raises:
            PlacementError: there is no such kind of norm, or its groups do not divide the width.
        """
        width = self.hidden_size if width is None else width
        if plan.kind in POINTWISE:
            return POINTWISE[plan.kind](width, plan.slope)
        if plan.kind != NORM.kind:
            raise PlacementError(f"unknown kind of norm {plan.kind!r}. Valid: {NORM.kind}, {', '.join(POINTWISE)}")
        if plan.groups == 1:
            return self.build(width)
        return GroupedNorm(
            width,
            plan.groups,
            self.eps,
            centered=self.centered,
            has_weight=self.has_weight,
            has_bias=self.has_bias,
        )
