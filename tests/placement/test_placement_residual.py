"""`Residual` and `PlacedBlock` against the formula, part by part and all parts at once."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any, Literal

import pytest
import torch
from placement_tools import WIDTH, randomise_vectors
from torch import nn
from torch.nn import functional as F

from mixln.placement import (
    NORM,
    ActivationGate,
    Block,
    BlockPlan,
    NormPlan,
    Placement,
    PlacementError,
    QKVNormPlan,
    Residual,
    SublayerPlan,
    norm_factory,
)

WHOLE = SublayerPlan(
    input_norm=NORM,
    gain=0.3,
    branch_norm=NORM,
    output_norm=NORM,
    residual_scale="learned",
    bypass=0.7,
    gate="stream",
)
PLANS = {
    "nothing": SublayerPlan(),
    "input norm": SublayerPlan(input_norm=NORM),
    "gain": SublayerPlan(gain=0.3),
    "branch norm": SublayerPlan(branch_norm=NORM),
    "output norm": SublayerPlan(output_norm=NORM),
    "rho": SublayerPlan(residual_scale=1.7),
    "learned rho": SublayerPlan(residual_scale="learned"),
    "bypass": SublayerPlan(bypass=0.7),
    "gate on the stream": SublayerPlan(gate="stream"),
    "gate on the output": SublayerPlan(gate="output"),
    "everything, gate on the stream": WHOLE,
    "everything, gate on the output": replace(WHOLE, gate="output"),
    "everything, fixed rho": replace(WHOLE, residual_scale=1.7),
}

Tensors = Mapping[str, torch.Tensor]
Map = Callable[[torch.Tensor], torch.Tensor]


def rms(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    return x / (x.pow(2).mean(-1, keepdim=True) + 1e-6).sqrt() * weight


def formula(
    plan: SublayerPlan,
    x: torch.Tensor,
    x_block: torch.Tensor,
    sublayer: Map,
    norms: dict[str, str],
    p: Tensors,
    name: str,
) -> torch.Tensor:
    """y = P(N_out(bypass * x_block + S(rho * x) + N_branch(F(gain * N_in(x))))), from the parameters `p` alone."""

    def norm(part: Literal["in", "branch", "out"], present: object, h: torch.Tensor) -> torch.Tensor:
        return h if present is None else rms(h, p[norms[part] + ".weight"])

    def gate(here: bool, h: torch.Tensor) -> torch.Tensor:
        if not here:
            return h
        g = p["activation_gate.weight"]
        return h - (g * torch.sigmoid(g)) * h.detach()

    rho = p[f"{name}_residual.residual_scale"] if plan.residual_scale == "learned" else plan.residual_scale
    branch = norm("branch", plan.branch_norm, sublayer(plan.gain * norm("in", plan.input_norm, x)))
    stream = gate(plan.gate == "stream", rho * x)
    return gate(plan.gate == "output", norm("out", plan.output_norm, plan.bypass * x_block + stream + branch))


def norm_names(plan: SublayerPlan) -> tuple[dict[str, str], dict[str, str]]:
    """Names of a block's norms (attention, feed-forward) when both sublayers have this plan."""
    free = plan.branch_norm is None and plan.output_norm is None
    suffix = "layernorm" if plan.branch_norm is None else "residual_layernorm"
    attention = {
        "in": "input_layernorm",
        "branch": "post_attention_layernorm",
        "out": f"post_attention_{suffix}",
    }
    feed_forward = {
        "in": "post_attention_layernorm" if free else "pre_feedforward_layernorm",
        "branch": "post_feedforward_layernorm",
        "out": f"post_feedforward_{suffix}",
    }
    return attention, feed_forward


class Sublayer(nn.Linear):
    def __init__(self) -> None:
        super().__init__(WIDTH, WIDTH)

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        return torch.tanh(super().forward(input))


def make_block(plan: SublayerPlan) -> Block:
    torch.manual_seed(0)
    block = Block(BlockPlan(plan, plan), Sublayer(), Sublayer(), norm_factory(WIDTH), WIDTH).double()
    randomise_vectors(block)
    return block


@pytest.mark.parametrize("case", PLANS)
def test_a_block_is_the_formula_forward_and_backward(case: str) -> None:
    plan = PLANS[case]
    block = make_block(plan)
    x = torch.randn(2, 3, WIDTH, dtype=torch.float64, requires_grad=True)
    parameters = dict(block.named_parameters())
    attention_norms, feed_forward_norms = norm_names(plan)
    middle = formula(plan, x, x, block.attention, attention_norms, parameters, "attention")
    expected = formula(plan, middle, x, block.feed_forward, feed_forward_norms, parameters, "feed_forward")
    output = block(x)
    torch.testing.assert_close(output, expected, rtol=1e-12, atol=1e-12)

    weight = torch.randn_like(output)
    inputs = [x, *parameters.values()]
    gradients = torch.autograd.grad((output * weight).sum(), inputs)
    wanted = torch.autograd.grad((expected * weight).sum(), inputs)
    for name, gradient, reference in zip(["input", *parameters], gradients, wanted, strict=True):
        torch.testing.assert_close(gradient, reference, rtol=1e-9, atol=1e-10, msg=lambda text, n=name: f"{n}: {text}")


@pytest.mark.parametrize("case", [case for case in PLANS if case != "nothing"])
def test_every_part_makes_a_difference(case: str) -> None:
    x = torch.randn(2, 3, WIDTH, dtype=torch.float64)
    assert not torch.allclose(make_block(PLANS[case])(x), make_block(SublayerPlan())(x), rtol=1e-3)


def test_the_residual_alone_executes_the_formula_on_what_it_is_handed() -> None:
    residual = Residual(replace(WHOLE, gate="output"), WIDTH).double()
    randomise_vectors(residual)
    rho = residual.residual_scale
    assert isinstance(rho, nn.Parameter)
    x, x_block = torch.randn(2, 4, 3, WIDTH, dtype=torch.float64).unbind()
    # maps of which no two commute, so that a part in another place gives another result
    output = residual(
        x,
        torch.sin,
        block_input=x_block,
        input_norm=nn.Tanh(),
        branch_norm=nn.Sigmoid(),
        output_norm=nn.Softplus(),
        gate=nn.Hardswish(),
    )
    expected = F.hardswish(F.softplus(0.7 * x_block + rho * x + torch.sigmoid(torch.sin(0.3 * torch.tanh(x)))))
    torch.testing.assert_close(output, expected, rtol=1e-12, atol=1e-12)


def test_the_gate_scales_the_activation_and_leaves_the_gradient() -> None:
    gate = ActivationGate().double()
    h = torch.randn(2, 3, WIDTH, dtype=torch.float64, requires_grad=True)
    assert torch.equal(gate(h), h)

    g = 0.8
    with torch.no_grad():
        gate.weight.fill_(g)
    sigmoid = torch.sigmoid(torch.tensor(g, dtype=torch.float64))
    output = gate(h)
    torch.testing.assert_close(output, h * (1 - g * sigmoid), rtol=1e-12, atol=0)
    upstream = torch.randn_like(output)
    by_h, by_g = torch.autograd.grad(output, [h, gate.weight], upstream)
    assert torch.equal(by_h, upstream)
    slope = sigmoid * (1 + g * (1 - sigmoid))
    torch.testing.assert_close(by_g, -(upstream * h).sum()[None] * slope, rtol=1e-12, atol=0)


def test_one_gate_is_shared_by_both_sublayers() -> None:
    block = make_block(SublayerPlan(gate="output"))
    assert [name for name, _ in block.named_parameters() if "gate" in name] == ["activation_gate.weight"]


def test_reset_parameters_makes_learned_parts_neutral() -> None:
    block = make_block(SublayerPlan(residual_scale="learned", gate="output"))
    x = torch.randn(2, 3, WIDTH, dtype=torch.float64)
    bare = make_block(SublayerPlan())
    assert not torch.allclose(block(x), bare(x))
    for module in block.modules():
        if isinstance(module, (Residual, ActivationGate)):
            module.reset_parameters()
    assert torch.equal(block(x), bare(x))


@pytest.mark.parametrize("scheme", ["pre", "post", "sandwich"])
def test_a_norm_replaced_on_the_block_is_the_one_that_runs(scheme: str) -> None:
    plan = Placement.parse(scheme).plan(1).blocks[0]
    torch.manual_seed(0)
    block = Block(plan, Sublayer(), Sublayer(), norm_factory(WIDTH), WIDTH)
    x = torch.randn(2, 3, WIDTH)
    names = [name for name, _ in block.named_children() if name.endswith("layernorm")]
    for name in names:
        before = block(x)
        calls: list[str] = []
        replacement = nn.LayerNorm(WIDTH)
        nn.init.constant_(replacement.bias, 0.5)
        replacement.register_forward_hook(lambda *_, name=name, calls=calls: calls.append(name))
        setattr(block, name, replacement)
        assert not torch.allclose(block(x), before)
        assert calls == [name]


NAMES = {
    "pre": ["input_layernorm", "post_attention_layernorm"],
    "lns": ["input_layernorm", "post_attention_layernorm"],
    "post": ["post_attention_layernorm", "post_feedforward_layernorm"],
    "deepnorm": ["post_attention_layernorm", "post_feedforward_layernorm"],
    "sandwich": [
        "input_layernorm",
        "post_attention_layernorm",
        "post_feedforward_layernorm",
        "pre_feedforward_layernorm",
    ],
}


@pytest.mark.parametrize("scheme", NAMES)
def test_norms_have_the_names_of_stock_architectures(scheme: str) -> None:
    plan = Placement.parse(scheme).plan(2).blocks[1]
    block = Block(plan, Sublayer(), Sublayer(), norm_factory(WIDTH), WIDTH)
    assert sorted(name for name, _ in block.named_children() if name.endswith("norm")) == NAMES[scheme]
    own = {name for name, _ in block.named_parameters() if not name.startswith(("attention.", "feed_forward."))}
    assert own == {f"{name}.weight" for name in NAMES[scheme]}
    assert not list(block.buffers())


def test_mixed_sublayers_are_named_each_by_its_own_parts() -> None:
    plan = BlockPlan(SublayerPlan(branch_norm=NORM), SublayerPlan(output_norm=NORM))
    block = Block(plan, Sublayer(), Sublayer(), norm_factory(WIDTH), WIDTH)
    names = sorted(name for name, _ in block.named_children() if name.endswith("norm"))
    assert names == ["post_attention_layernorm", "post_feedforward_layernorm"]


def test_the_block_refuses_norms_that_it_cannot_reach() -> None:
    plan = BlockPlan(SublayerPlan(qkv_norm=QKVNormPlan()), SublayerPlan())
    with pytest.raises(PlacementError, match="inside the attention"):
        Block(plan, Sublayer(), Sublayer(), norm_factory(WIDTH), WIDTH)


def test_the_norm_factory_refuses_what_it_cannot_build() -> None:
    with pytest.raises(PlacementError, match="unknown kind of norm 'batch'"):
        norm_factory(WIDTH)(NormPlan(kind="batch"))
    with pytest.raises(PlacementError, match=f"3 groups of channels do not divide a width of {WIDTH}"):
        norm_factory(WIDTH)(NormPlan(groups=3))
    kind: Any = "batchnorm"
    with pytest.raises(PlacementError, match=r"'batchnorm'\. Valid: rmsnorm, layernorm"):
        norm_factory(WIDTH, kind)


@pytest.mark.parametrize(("kind", "has_bias"), [("rmsnorm", False), ("layernorm", True)])
def test_the_norm_factory_builds_the_norm_asked_for(kind: Literal["rmsnorm", "layernorm"], has_bias: bool) -> None:
    x = torch.randn(4, WIDTH, dtype=torch.float64) + 3
    norm = norm_factory(WIDTH, kind, eps=1e-3)(NORM).double()
    centred = x - x.mean(-1, keepdim=True) if has_bias else x
    expected = centred / (centred.pow(2).mean(-1, keepdim=True) + 1e-3).sqrt()
    torch.testing.assert_close(norm(x), expected, rtol=1e-9, atol=1e-12)
    assert len(list(norm.parameters())) == 1 + has_bias


def test_scalars_that_are_not_neutral_are_shown() -> None:
    assert repr(Residual(SublayerPlan(), WIDTH)) == "Residual()"
    shown = repr(Residual(SublayerPlan(gain=0.5, bypass=1.0, residual_scale=2.0), WIDTH))
    assert shown == "Residual(gain=0.5, bypass=1, residual_scale=2)"
