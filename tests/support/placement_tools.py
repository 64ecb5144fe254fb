"""A block around hand-written modules, and the placements that registry-wide tests run over."""

from __future__ import annotations

import itertools
from dataclasses import replace

import torch
from torch import nn

from mixln.placement import (
    Block,
    BlockPlan,
    Role,
    StackPlan,
    list_modifiers,
    list_schemes,
    norm_factory,
)

WIDTH = 8

OPTIONED = ["mix(alpha=0.5)", "mix(post_layers=2)", "deepnorm(residual_scale=1.5)"]
PLACEMENTS = [
    *list_schemes(),
    *OPTIONED,
    *(f"{scheme}+{modifier}" for scheme in list_schemes() for modifier in list_modifiers()),
    *(f"mix(alpha=0.5)+{'+'.join(both)}" for both in itertools.combinations(list_modifiers(), 2)),
]


class Attention(nn.Module):
    """Causal self-attention of PyTorch's own, with the shape that `Block` asks for."""

    def __init__(self, width: int = WIDTH, heads: int = 2) -> None:
        super().__init__()
        self.inner = nn.MultiheadAttention(width, heads, bias=False, batch_first=True)

    def forward(self, x: torch.Tensor, attn_mask: torch.Tensor | None = None) -> torch.Tensor:
        return self.inner(x, x, x, attn_mask=attn_mask, need_weights=False)[0]


def make_mlp(width: int = WIDTH) -> nn.Sequential:
    return nn.Sequential(nn.Linear(width, 3 * width, bias=False), nn.SiLU(), nn.Linear(3 * width, width, bias=False))


def around_anything(block: BlockPlan) -> BlockPlan:
    """The plan without norms inside the attention, which a block around anyone's modules cannot reach."""
    return replace(block, attention=replace(block.attention, qkv_norm=None))


class Stack(nn.Module):
    """Anyone's transformer: an embedding, placed blocks, a final norm, a head."""

    def __init__(self, plan: StackPlan, *, vocabulary: int = 11, width: int = WIDTH) -> None:
        super().__init__()
        norm = norm_factory(width)
        self.factor = plan.embedding_factor(width)
        self.embedding = nn.Embedding(vocabulary, width)
        self.blocks = nn.ModuleList(
            Block(around_anything(block), Attention(width), make_mlp(width), norm, width) for block in plan.blocks
        )
        self.embedding_norm = norm(plan.embedding_norm) if plan.embedding_norm is not None else nn.Identity()
        self.norm = norm(plan.final_norm) if plan.final_norm is not None else nn.Identity()
        self.head = nn.Linear(width, vocabulary, bias=False)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        mask = torch.ones(ids.shape[1], ids.shape[1], dtype=torch.bool).triu(1)
        x = self.embedding_norm(self.embedding(ids) * self.factor)
        for block in self.blocks:
            x = block(x, attn_mask=mask)
        return self.head(self.norm(x))


ROLES: dict[str, Role] = {
    "embedding.weight": "embedding",
    "blocks.*.attention.inner.in_proj_weight": "query",
    "blocks.*.attention.inner.out_proj.weight": "attention_output",
    "blocks.*.feed_forward.0.weight": "up",
    "blocks.*.feed_forward.2.weight": "down",
    "head.weight": "head",
}


def randomise_vectors(module: nn.Module, seed: int = 1) -> None:
    """Give every norm gain, gate and learned rho a value of its own, so that none can stand in for another."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in module.parameters():
            if parameter.ndim < 2:
                parameter.copy_(torch.rand(parameter.shape, generator=generator) + 0.5)
