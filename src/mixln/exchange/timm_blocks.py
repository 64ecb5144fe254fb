"""A block of timm's `VisionTransformer` whose norms stand where a plan says.

It imports timm, so nothing imports this module before it is needed.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from timm.models.vision_transformer import Block
from torch import nn

from mixln.placement import (
    ArchitectureNorm,
    FusedRoles,
    ParameterRole,
    PlacedBlock,
    PlacementError,
    StackPlan,
    draw,
)
from mixln.placement.initialization import matrix_shape

_ROLES: Mapping[str, ParameterRole] = {
    "attn.qkv.weight": FusedRoles(("query", "key", "value"), dim=0),
    "attn.proj.weight": "attention_output",
    "mlp.fc1.weight": "up",
    "mlp.fc2.weight": "down",
}


class PlacedTimmBlock(PlacedBlock, Block):
    """timm's `Block`, with the norms where the plan puts them; attention, MLP, scale and dropped paths are timm's.

    The norms in front of the sublayers are `norm1` and `norm2`, as in timm; those on a branch and behind an addition
    end in `_branch` and `_out`.

    Args:
        stack_plan: of the whole stack, whose block at `depth` this is.
        placement: text form of it.
        depth: position in the stack, from 0; timm's `VisionTransformer` gives it.
        options: all others of timm's `Block`, by name.

    Raises:
        PlacementError: the plan has no such block, or needs norms that timm's attention has no place for; or timm is
            told to norm query and key, and the placement does not say so.
    """

    norm_names: ClassVar[Mapping[tuple[str, str], str]] = {
        (sublayer, part): f"norm{number}{ending}"
        for number, sublayer in ((1, "attention"), (2, "feed_forward"))
        for part, ending in (("input_norm", ""), ("branch_norm", "_branch"), ("output_norm", "_out"))
    }

    def __init__(self, stack_plan: StackPlan, placement: str, *, depth: int, **options: Any) -> None:
        if depth >= len(stack_plan.blocks):
            raise PlacementError(
                f"the placement was made for {len(stack_plan.blocks)} blocks, and timm builds more: give timm_block_fn "
                "the model's `depth`"
            )
        plan = stack_plan.blocks[depth]
        if options.get("qk_norm"):
            raise PlacementError("qk_norm is a part of the placement here: write `+qk_norm`, and leave timm's off")
        super().__init__(depth=depth, **options)
        self.placement = placement
        dim: int = options["dim"]
        factory = _norm_factory(self.norm1, dim, options["norm_layer"], options)
        del self.norm1, self.norm2
        if (inside := plan.attention.qkv_norm) is not None:
            if not inside.per_head or "value" in inside.projections:
                raise PlacementError(
                    "timm's attention norms query and key of each head, and this placement norms "
                    f"{', '.join(inside.projections)} {'of each head' if inside.per_head else 'over the full width'}: "
                    "use this library's own ViT (MixLNViTConfig)"
                )
            for projection in inside.projections:
                norm = factory(inside.norm, dim // options["num_heads"])
                self.attn.add_module(f"{projection[0]}_norm", norm)
        self.add_placement(plan, factory, dim)
        for number, sublayer in ((1, "attention"), (2, "feed_forward")):
            for part, name in (("layer_scale", f"ls{number}"), ("drop_path", f"drop_path{number}")):
                if not isinstance(self.get_submodule(name), nn.Identity):
                    self.part_names[sublayer][part] = name

    def forward(self, x: torch.Tensor, *args: Any, **options: Any) -> torch.Tensor:
        """Return the block's output (batch, tokens, hidden); all else is for timm's attention, which takes the same."""
        return self.run_sublayers(x, attention=lambda h: self.attn(h, *args, **options), feed_forward=self.mlp)

    def init_weights(self) -> None:
        """Draw the matrices that the scheme has a rule for (DeepNorm); called by timm after its own initialisation."""
        seed = int(torch.randint(2**62, (), device="cpu"))
        with torch.no_grad():
            for name, held in _ROLES.items():
                fused = held if isinstance(held, FusedRoles) else FusedRoles((held,), dim=0)
                rules = [self.plan.init.get(role) for role in fused.roles]
                parameter = self.get_parameter(name)
                if parameter.is_meta or not all(rules):
                    continue
                rows, columns = matrix_shape(parameter)
                sizes = {"base_std": 0.02, "hidden_size": columns, "fan_in": columns}
                fan_out = rows // len(fused.roles)
                stds = [rule.standard_deviation(**sizes, fan_out=fan_out) for rule in rules if rule is not None]
                draw(parameter, name, std=stds, seed=seed)


def _norm_factory(norm: nn.Module, dim: int, build: Any, options: Mapping[str, Any]) -> ArchitectureNorm:
    """Describe timm's norm, and check that the description is right.

    Raises:
        PlacementError: it is another kind of norm.
    """
    here = {name: options[name] for name in ("device", "dtype") if options.get(name) is not None}
    factory = ArchitectureNorm(
        lambda width: build(width, **here),
        dim,
        eps=float(getattr(norm, "eps", 0.0)),
        centered=isinstance(norm, nn.LayerNorm),
        has_weight=getattr(norm, "weight", None) is not None,
        has_bias=getattr(norm, "bias", None) is not None,
    )
    if not here:  # one on another device, or coarser, cannot be tried
        factory.check()
    return factory
