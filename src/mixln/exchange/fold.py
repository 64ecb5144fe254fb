"""Folding: the parts of a placement that a model's weights can take up, so that nothing has to execute them.

    N(x) = w * n(x) + b:   gain * N(x)         = (gain * w) * n(x) + gain * b
    N(x) without w:        M (gain * N(x))     = (gain * M) N(x), M each matrix that reads it
    token t:               N(factor * E[t])    is a constant of the token, and becomes E[t]
    gate:                  G(h) = (1 - silu(g)) h is the identity where g = 0
    layer scale:           gamma * (M x + b)   = (gamma M) x + gamma b, or of N_branch as of N above

Each is an identity of real numbers; rounded weights follow it up to the rounding of one product. A gate with g != 0
has none: its factor multiplies the stream, of which the next norm takes it off again, but for the eps in the norm.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn

from mixln.models.placed import PlacedConfig, PlacedPreTrainedModel
from mixln.models.roles import READERS, WRITER, RoleMatrix, role_matrices
from mixln.placement import PlacedBlock, Role, StackPlan
from mixln.placement.plan import SUBLAYERS


@dataclass
class Folded:
    """What is left of a model after folding.

    Attributes:
        plan: the rest, which a model must execute.
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
    folded = Folded(config.stack_plan, weights, tied=bool(getattr(config, "tie_word_embeddings", False)))
    _fold_gains(model, folded)
    _fold_gates(model, folded)
    _fold_layer_scales(model, folded)
    _fold_embedding(model, folded)
    return folded


def names_of_role(model: PlacedPreTrainedModel, role: Role) -> list[str]:
    """Return the names of the parameters that hold matrices of one role, alone or among others."""
    return [matrix.name for matrix in role_matrices(model) if role in matrix.roles]


def _blocks(model: nn.Module) -> list[tuple[str, PlacedBlock]]:
    return [(name, module) for name, module in model.named_modules() if isinstance(module, PlacedBlock)]


def _scaled(tensor: torch.Tensor, factor: float) -> torch.Tensor:
    return (tensor.double() * factor).to(tensor.dtype)


def _fold_gains(model: PlacedPreTrainedModel, folded: Folded) -> None:
    weights = folded.weights
    blocks = list(folded.plan.blocks)
    matrices = list(role_matrices(model))
    for index, (block_name, block) in enumerate(_blocks(model)):
        for sublayer in SUBLAYERS:
            plan = blocks[index].sublayer(sublayer)
            if plan.gain == 1:
                continue
            norm_name = f"{block_name}.{block.part_names[sublayer].get('input_norm')}"
            if f"{norm_name}.weight" in weights:
                for name in (f"{norm_name}.weight", f"{norm_name}.bias"):
                    if name in weights:
                        weights[name] = _scaled(weights[name], plan.gain)
            else:
                for matrix in matrices:
                    if matrix.block == index:
                        weights[matrix.name] = _scaled_parts(weights[matrix.name], matrix, READERS[sublayer], plan.gain)
            blocks[index] = replace(blocks[index], **{sublayer: replace(plan, gain=1.0)})
    folded.plan = replace(folded.plan, blocks=tuple(blocks))


def _scaled_parts(tensor: torch.Tensor, matrix: RoleMatrix, wanted: tuple[Role, ...], factor: float) -> torch.Tensor:
    """Return the matrix with those of its parts multiplied whose role is wanted."""
    if not set(matrix.roles) & set(wanted):
        return tensor
    parts = matrix.parts(tensor).items()
    return torch.cat([_scaled(part, factor if role in wanted else 1.0) for role, part in parts], dim=matrix.dim)


def _fold_gates(model: PlacedPreTrainedModel, folded: Folded) -> None:
    blocks = list(folded.plan.blocks)
    for index, (block_name, _) in enumerate(_blocks(model)):
        name = f"{block_name}.activation_gate.weight"
        if name in folded.weights and not folded.weights[name].any():
            del folded.weights[name]
            ungated = {one: replace(blocks[index].sublayer(one), gate=None) for one in SUBLAYERS}
            blocks[index] = replace(blocks[index], **ungated)
    folded.plan = replace(folded.plan, blocks=tuple(blocks))


def _fold_layer_scales(model: PlacedPreTrainedModel, folded: Folded) -> None:
    """Fold what a branch is multiplied with at its end into its norm there, or into the matrix that it comes from."""
    weights = folded.weights
    matrices = list(role_matrices(model))
    for index, (block_name, block) in enumerate(_blocks(model)):
        for sublayer in SUBLAYERS:
            parts = block.part_names[sublayer]
            if "layer_scale" not in parts:
                continue
            gamma = weights.pop(f"{block_name}.{parts['layer_scale']}.gamma").double()
            role = WRITER[sublayer]
            matrix = next(one.name for one in matrices if one.block == index and one.roles == (role,))
            source = f"{block_name}.{parts['branch_norm']}.weight" if "branch_norm" in parts else matrix
            for name in (source, f"{source.rpartition('.')[0]}.bias"):
                if name in weights:
                    tensor = weights[name]
                    scale = gamma if tensor.ndim == 1 else gamma[:, None]
                    weights[name] = (tensor.double() * scale).to(tensor.dtype)


def _fold_embedding(model: PlacedPreTrainedModel, folded: Folded) -> None:
    plan = folded.plan
    config = model.config
    assert isinstance(config, PlacedConfig)
    factor = plan.embedding_factor(config.hidden_size)
    if factor == 1 and plan.embedding_norm is None:
        return
    if plan.embedding_norm is not None and names_of_role(model, "position_embedding"):
        return  # what is normed there is the sum of a token's row and a position's, no constant of either
    stack: Any = model.base_model
    names = [
        name if name in folded.weights else f"{model.base_model_prefix}.{name}" for name in stack.embedding_parameters()
    ]
    if len(names) > 1:
        for name in names:  # parts that are added up, and normed by nothing
            folded.weights[name] = _scaled(folded.weights[name], factor)
        folded.plan = replace(plan, embedding_scale=1.0)
        return
    (name,) = names
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
