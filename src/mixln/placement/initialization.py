"""Drawing weights: by role, and each parameter from a generator of its own.

A parameter's draw depends on (seed, parameter name) alone: not on the order of construction, other parameters, the
device or the number of processes. So models that differ in their placement share the
draws of all parameters they have in common, and a sharded model gets the weights of an unsharded one.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import nn
from torch.distributed.tensor import DTensor, distribute_tensor

from mixln.placement.plan import CONTENT_ROLES, PlacementError, Role, StackPlan


@dataclass(frozen=True)
class FusedRoles:
    """The roles of a matrix that holds several side by side, in equal parts along a dimension (GPT-2's `c_attn`).

    Attributes:
        roles: first part to last.
        dim: the dimension that is cut; 1 where weights are stored as (in, out).
    """

    roles: tuple[Role, ...]
    dim: int


ParameterRole = Role | FusedRoles
"""What a parameter holds: a matrix with one role, or several in one."""


def initialize(
    module: nn.Module,
    plan: StackPlan,
    roles: Mapping[str, ParameterRole],
    *,
    seed: int,
    hidden_size: int,
    base_std: float = 0.02,
    embedding_std: float | None = None,
    wanted: Callable[[nn.Parameter], bool] | None = None,
    draw_name: Callable[[str], str] = str,
) -> None:
    """Draw every matrix that has a role from N(0, std^2), std by the plan's rule for its role.

    Parameters without a role, such as biases and norms, are left alone. Works on materialised parameters of any device
    and dtype and on sharded ones (DTensor); parameters still on the meta device are an error.

    Args:
        module: the model, or a part of it.
        plan: the stack's plan, with the rules.
        roles: parameter-name pattern to role; `*` stands for the position of a block, from 0:
            `{"layers.*.attention.q.weight": "query"}`. Each part of a fused matrix has its own fans and gain.
        seed: of the draws.
        hidden_size: d in the rules.
        base_std: standard deviation where the placement has no rule of its own.
        embedding_std: standard deviation of the embedding; None: by the placement's rule.
        wanted: returns whether to draw a parameter; by default all are drawn.
        draw_name: maps the name in `module` to the name that the draw is keyed on.

    Raises:
        PlacementError: a parameter is on the meta device, or no parameter matches any role.
    """
    matched = False
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            found = find_role(name, roles)
            if found is None:
                continue
            matched = True
            if wanted is not None and not wanted(parameter):
                continue
            role, block = found
            fused = role if isinstance(role, FusedRoles) else FusedRoles((role,), dim=0)
            rows, columns = matrix_shape(parameter)
            part = parameter.shape[fused.dim] // len(fused.roles)
            stds = [
                embedding_std
                if one in CONTENT_ROLES and embedding_std is not None
                else plan.init_rule(one, block).standard_deviation(
                    base_std=base_std,
                    hidden_size=hidden_size,
                    # which of the two is the fan in makes no difference to any rule
                    fan_in=columns if fused.dim == 0 else rows,
                    fan_out=part,
                )
                for one in fused.roles
            ]
            draw(parameter, draw_name(name), std=stds, seed=seed, dim=fused.dim)
    if not matched:
        raise PlacementError(f"no parameter of {type(module).__name__} has a role; the patterns are {list(roles)}")


def matrix_shape(parameter: torch.Tensor) -> tuple[int, int]:
    """Return (rows, columns) of a parameter as the matrix that it is.

    The kernel of a convolution, (out, in, height, width), is one of (out, in * height * width); tokens or positions of
    shape (1, tokens, hidden) are one of (tokens, hidden).
    """
    matrix = parameter[0] if parameter.ndim == 3 and parameter.shape[0] == 1 else parameter
    return matrix.shape[0], matrix.shape[1:].numel()


def find_role(name: str, roles: Mapping[str, ParameterRole]) -> tuple[ParameterRole, int | None] | None:
    """Return the role of a parameter and the position of its block (None outside the blocks), or None without role."""
    for pattern, role in roles.items():
        match = re.fullmatch(re.escape(pattern).replace(r"\*", r"(\d+)"), name)
        if match is not None:
            return role, int(match[1]) if match.groups() else None
    return None


def draw(parameter: torch.Tensor, name: str, *, std: float | Sequence[float], seed: int, dim: int = 0) -> None:
    """Fill a parameter with N(0, std^2), drawn in full and in float32 from the generator of (seed, name), then sliced.

    Args:
        parameter: to fill, sharded or not.
        name: and `seed`: of the generator.
        std: one for all, or one for each of as many equal parts along `dim`.
        seed: see `name`.
        dim: the dimension of the parts.

    Raises:
        PlacementError: the parameter is on the meta device, or cannot be cut into equal parts.
    """
    if parameter.is_meta:
        raise PlacementError(f"parameter {name!r} is on the meta device: call to_empty(device=...) before initialising")
    stds = [std] if isinstance(std, (int, float)) else list(std)
    if parameter.shape[dim] % len(stds) != 0:
        raise PlacementError(f"parameter {name!r} of shape {tuple(parameter.shape)} is not of {len(stds)} equal parts")
    digest = hashlib.blake2b(f"{seed}:{name}".encode(), digest_size=8).digest()
    generator = torch.Generator().manual_seed(int.from_bytes(digest, "big") >> 1)
    full = torch.randn(tuple(parameter.shape), generator=generator)
    for part, part_std in zip(full.chunk(len(stds), dim), stds, strict=True):
        part.mul_(part_std)
    if isinstance(parameter, DTensor):
        full = full.to(device=parameter.device, dtype=parameter.dtype)
        # every process has drawn the same tensor, so each takes its own part and nothing is sent
        full = distribute_tensor(full, parameter.device_mesh, parameter.placements, src_data_rank=None)
    parameter.copy_(full)
