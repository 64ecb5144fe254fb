"""Norms that architectures lack, against their formulas."""

from __future__ import annotations

import math

import pytest
import torch
from placement_tools import WIDTH

from mixln.placement import NormPlan, norm_factory

X = torch.randn(3, 5, WIDTH, generator=torch.Generator().manual_seed(0), dtype=torch.float64) * 2 + 1


def grown(norm: torch.nn.Module) -> torch.nn.Module:
    """The norm in float64, every parameter at a random value."""
    norm = norm.double()
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in norm.parameters():
            parameter.copy_(torch.rand(parameter.shape, generator=generator, dtype=torch.float64) + 0.5)
    return norm


@pytest.mark.parametrize("groups", [2, 4, WIDTH])
@pytest.mark.parametrize("kind", ["rmsnorm", "layernorm"])
def test_a_grouped_norm_is_the_norm_of_each_group(kind: str, groups: int) -> None:
    norm = grown(norm_factory(WIDTH, kind, eps=1e-3)(NormPlan(groups=groups)))  # pyright: ignore[reportArgumentType]
    weight = norm.get_parameter("weight")
    bias = norm.get_parameter("bias") if kind == "layernorm" else torch.zeros(WIDTH)
    expected = torch.empty_like(X)
    size = WIDTH // groups
    for start in range(0, WIDTH, size):
        part = X[..., start : start + size]
        if kind == "layernorm":
            part = part - part.mean(-1, keepdim=True)
        expected[..., start : start + size] = part / (part.pow(2).mean(-1, keepdim=True) + 1e-3).sqrt()
    torch.testing.assert_close(norm(X), expected * weight + bias, rtol=1e-12, atol=1e-12)


def test_a_grouped_norm_of_one_token_does_not_depend_on_the_others() -> None:
    norm = grown(norm_factory(WIDTH)(NormPlan(groups=2)))
    torch.testing.assert_close(norm(X)[1, 2], norm(X[1, 2]), rtol=1e-12, atol=0)


@pytest.mark.parametrize("kind", ["dyt", "derf"])
def test_a_pointwise_kind_is_its_formula(kind: str) -> None:
    fresh = norm_factory(WIDTH)(NormPlan(kind=kind, slope=0.3))
    assert fresh.get_parameter("alpha").item() == pytest.approx(0.3)
    norm = grown(norm_factory(WIDTH)(NormPlan(kind=kind, slope=0.3)))
    values = {name: parameter.tolist() for name, parameter in norm.named_parameters()}
    function = math.tanh if kind == "dyt" else math.erf
    found = norm(X)
    for channel in range(WIDTH):
        argument = X[0, 0, channel].item() * values["alpha"][0] + values.get("shift", [0.0])[0]
        expected = values["weight"][channel] * function(argument) + values["bias"][channel]
        assert found[0, 0, channel].item() == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("plan", [NormPlan(kind="dyt", slope=0.3), NormPlan(kind="derf"), NormPlan(groups=4)])
def test_resetting_gives_the_initial_values(plan: NormPlan) -> None:
    norm, fresh = norm_factory(WIDTH, "layernorm")(plan), norm_factory(WIDTH, "layernorm")(plan)
    with torch.no_grad():
        for parameter in norm.parameters():
            parameter.fill_(7.0)
    norm.reset_parameters()  # pyright: ignore[reportCallIssue]
    for name, parameter in norm.named_parameters():
        assert torch.equal(parameter, fresh.get_parameter(name)), name


def test_grouped_norms_keep_the_dtype_and_compute_in_float32() -> None:
    norm = norm_factory(WIDTH)(NormPlan(groups=2)).half()
    large = torch.full((1, WIDTH), 6e4, dtype=torch.float16)  # its square is infinite in float16
    assert torch.equal(norm(large), torch.ones(1, WIDTH, dtype=torch.float16))
