"""Admin's profiling pass against its recursion, written out."""

from __future__ import annotations

import torch
from placement_tools import Attention, make_mlp
from torch import nn

from mixln.placement import (
    NORM,
    Block,
    BlockPlan,
    SublayerPlan,
    has_residual_scales_to_profile,
    norm_factory,
    profile_residual_scales,
    set_residual_scales,
)

WIDTH = 8
LEARNED = SublayerPlan(output_norm=NORM, residual_scale="learned")


def stack(plan: SublayerPlan = LEARNED, layers: int = 3) -> nn.Sequential:
    torch.manual_seed(0)
    norm = norm_factory(WIDTH)
    return nn.Sequential(*(Block(BlockPlan(plan, plan), Attention(), make_mlp(), norm, WIDTH) for _ in range(layers)))


def by_hand(blocks: nn.Sequential, x: torch.Tensor) -> list[float]:
    """omega_1 = 1, omega_(i+1) = sqrt(Var(omega_i x_i) + Var(F_i)), every layer run with the omega it has got."""
    omegas, omega = [], 1.0
    for block in blocks:
        assert isinstance(block, Block)
        for sublayer, name in (
            (block.attention, "post_attention_layernorm"),
            (block.feed_forward, "post_feedforward_layernorm"),
        ):
            omegas.append(omega)
            branch = sublayer(x)
            upcoming = ((omega * x).var(unbiased=False) + branch.var(unbiased=False)).sqrt().item()
            x = block.get_submodule(name)(omega * x + branch)
            omega = upcoming
    return omegas


def test_the_scales_are_those_of_the_recursion() -> None:
    blocks, x = stack(), torch.randn(4, 6, WIDTH) * 3 + 1
    with torch.no_grad():
        expected = by_hand(blocks, x)
    found = profile_residual_scales(blocks, lambda: blocks(x))
    torch.testing.assert_close(torch.tensor(found), torch.tensor(expected), rtol=1e-5, atol=0)
    assert len(found) == 6
    assert found[0] == 1.0
    assert found[2] > 1.0
    scales = [parameter for name, parameter in blocks.named_parameters() if name.endswith("residual_scale")]
    for scale, value in zip(scales, found, strict=True):
        torch.testing.assert_close(scale, torch.full((WIDTH,), value))
    # and no hook is left behind that would set them again
    set_residual_scales(blocks, [2.0] * 6)
    blocks(x)
    assert all((scale == 2).all() for scale in scales)


def test_the_parts_of_a_batch_add_up_to_the_whole() -> None:
    x = torch.randn(4, 6, WIDTH)
    whole = profile_residual_scales(blocks := stack(), lambda: blocks(x))
    # a process that has every other row, and hears what the other has found: here twice its own, of equal rows
    half = torch.cat((x[:2], x[:2]))
    doubled = profile_residual_scales(blocks, lambda: blocks(half))
    heard = profile_residual_scales(blocks, lambda: blocks(x[:2]), reduce=lambda moments: moments * 2)
    torch.testing.assert_close(torch.tensor(heard), torch.tensor(doubled), rtol=1e-6, atol=0)
    assert heard != whole


def test_a_model_without_learned_scales_is_left_alone() -> None:
    blocks = stack(SublayerPlan(input_norm=NORM))
    assert not has_residual_scales_to_profile(blocks)
    assert has_residual_scales_to_profile(stack())
    assert profile_residual_scales(blocks, lambda: blocks(torch.randn(1, 2, WIDTH))) == []
