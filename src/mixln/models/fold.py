"""Folding: the parts of a placement that a model's weights can take up, so that nothing has to execute them.

    N(x) = w * n(x) + b:   gain * N(x)         = (gain * w) * n(x) + gain * b
    N(x) without w:        M (gain * N(x))     = (gain * M) N(x), M each matrix that reads it
    token t:               N(factor * E[t])    is a constant of the token, and becomes E[t]
    gate:                  G(h) = (1 - silu(g)) h is the identity where g = 0

Each is an identity of real numbers; rounded weights follow it up to the rounding of one product. A gate with g != 0
has none: its factor multiplies the stream, of which the next norm takes it off again, but for the eps in the norm.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import nn

from mixln.models.placed import PlacedConfig, PlacedPreTrainedModel
from mixln.placement import BlockPlan, FusedRoles, PlacedBlock, Role, StackPlan, SublayerPlan, find_role

SublayerName = Literal["attention", "feed_forward"]

SUBLAYERS: tuple[SublayerName, ...] = ("attention", "feed_forward")

_READERS: dict[SublayerName, tuple[Role, ...]] = {
    "attention": ("query", "key", "value"),
    "feed_forward": ("gate", "up"),
}
"""The matrices that are multiplied with a sublayer's normalised input."""


@dataclass
class Folded:
    """What is left of a model after folding.

    Attributes:
        plan: what remains to be executed.
        weights: by the names of the model's state dict; tensors that nothing was folded into are the model's own.
        tied: whether the head still is the embedding.
    """

    plan: StackPlan
    weights: dict[str, torch.Tensor]
    tied: bool


@torch.no_grad()
def fold(model: PlacedPreTrainedModel) -> Folded:
    """Fold whatever can be folded exactly; the model itself stays as it is."""
    config = model.config
    assert isinstance(config, PlacedConfig)
    weights = {name: tensor.detach() for name, tensor in model.state_dict().items()}
    folded = Folded(config.stack_plan, weights, tied=bool(config.tie_word_embeddings))
    _fold_gains(model, folded)
    _fold_gates(model, folded)
    _fold_embedding(model, folded)
    return folded


def sublayer_plan(block: BlockPlan, name: SublayerName) -> SublayerPlan:
    """Return the plan of one of a block's sublayers."""
    return block.attention if name == "attention" else block.feed_forward


def names_of_role(model: PlacedPreTrainedModel, role: Role) -> list[str]:
    """Return the names of the parameters that hold matrices of one role, alone or among others."""
    return [name for name, _, roles in _matrices(model) if role in roles.roles]


def _matrices(model: PlacedPreTrainedModel) -> Iterator[tuple[str, int | None, FusedRoles]]:
    """Give name, block and roles of every matrix that has one."""
    prefix = f"{model.base_model_prefix}."
    for name in model.state_dict():
        found = find_role(name.removeprefix(prefix), model.parameter_roles)
        if found is not None:
            role, block = found
            yield name, block, role if isinstance(role, FusedRoles) else FusedRoles((role,), dim=0)


def _blocks(model: nn.Module) -> list[tuple[str, PlacedBlock]]:
    return [(name, module) for name, module in model.named_modules() if isinstance(module, PlacedBlock)]


def _scaled(tensor: torch.Tensor, factor: float) -> torch.Tensor:
    return (tensor.double() * factor).to(tensor.dtype)


def _fold_gains(model: PlacedPreTrainedModel, folded: Folded) -> None:
    weights = folded.weights
    blocks = list(folded.plan.blocks)
    matrices = list(_matrices(model))
    for index, (block_name, block) in enumerate(_blocks(model)):
        for sublayer in SUBLAYERS:
            plan = sublayer_plan(blocks[index], sublayer)
            if plan.gain == 1:
                continue
            norm_name = f"{block_name}.{block.part_names[sublayer].get('input_norm')}"
            if f"{norm_name}.weight" in weights:
                for name in (f"{norm_name}.weight", f"{norm_name}.bias"):
                    if name in weights:
                        weights[name] = _scaled(weights[name], plan.gain)
            else:
                for name, position, roles in matrices:
                    if position == index:
                        weights[name] = _scaled_parts(weights[name], roles, _READERS[sublayer], plan.gain)
            blocks[index] = replace(blocks[index], **{sublayer: replace(plan, gain=1.0)})
    folded.plan = replace(folded.plan, blocks=tuple(blocks))


def _scaled_parts(matrix: torch.Tensor, roles: FusedRoles, wanted: tuple[Role, ...], factor: float) -> torch.Tensor:
    """Return the matrix with those of its parts multiplied whose role is wanted."""
    if not set(roles.roles) & set(wanted):
        return matrix
    parts = matrix.chunk(len(roles.roles), dim=roles.dim)
    scaled = [_scaled(part, factor if role in wanted else 1.0) for role, part in zip(roles.roles, parts, strict=True)]
    return torch.cat(scaled, dim=roles.dim)


def _fold_gates(model: PlacedPreTrainedModel, folded: Folded) -> None:
    blocks = list(folded.plan.blocks)
    for index, (block_name, _) in enumerate(_blocks(model)):
        name = f"{block_name}.activation_gate.weight"
        if name in folded.weights and not folded.weights[name].any():
            del folded.weights[name]
            ungated = {one: replace(sublayer_plan(blocks[index], one), gate=None) for one in SUBLAYERS}
            blocks[index] = replace(blocks[index], **ungated)
    folded.plan = replace(folded.plan, blocks=tuple(blocks))


def _fold_embedding(model: PlacedPreTrainedModel, folded: Folded) -> None:
    plan = folded.plan
    config = model.config
    assert isinstance(config, PlacedConfig)
    factor = plan.embedding_factor(config.hidden_size)
    if factor == 1 and plan.embedding_norm is None:
        return
    if plan.embedding_norm is not None and names_of_role(model, "position_embedding"):
        return  # what is normed there is the sum of a token's row and a position's, no constant of either
    (name,) = names_of_role(model, "embedding")
    rows = folded.weights[name]
    # the very operations of the forward, in its dtype: the rows come out bit for bit as the blocks get them
    if factor != 1:
        rows = rows * factor
    if plan.embedding_norm is not None:
        rows = model.base_model.get_submodule("embedding_norm")(rows)
        folded.weights = {key: tensor for key, tensor in folded.weights.items() if "embedding_norm." not in key}
    folded.weights[name] = rows
    folded.tied = False
    folded.plan = replace(plan, embedding_scale=1.0, embedding_norm=None)
