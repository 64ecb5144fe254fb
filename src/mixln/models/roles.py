"""The matrices of a model by role: where they are, and which of them read or write the stream."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from torch import Tensor

from mixln.models.placed import PlacedPreTrainedModel
from mixln.placement import FusedRoles, Role, find_role
from mixln.placement.plan import SublayerName

READERS: dict[SublayerName, tuple[Role, ...]] = {
    "attention": ("query", "key", "value"),
    "feed_forward": ("gate", "up"),
}
"""The matrices that are multiplied with a sublayer's normalised input."""

WRITER: dict[SublayerName, Role] = {"attention": "attention_output", "feed_forward": "down"}
"""The matrix that a sublayer's output comes from."""

WRITERS: tuple[Role, ...] = (
    *("embedding", "patch_embedding", "class_token", "position_embedding"),
    *WRITER.values(),
)
"""The matrices whose products are added to the stream."""


@dataclass(frozen=True)
class RoleMatrix:
    """A parameter that holds the matrix of one role, or those of several side by side.

    Attributes:
        name: of the parameter.
        block: its position in the stack; None outside the blocks.
        roles: of its parts, in their order.
        dim: along which they lie.
    """

    name: str
    block: int | None
    roles: tuple[Role, ...]
    dim: int

    def parts(self, tensor: Tensor, *, dim: int | None = None) -> dict[Role, Tensor]:
        """Return the parts of a tensor by role; `dim`: along another dimension than the matrix's own."""
        chunks = tensor.chunk(len(self.roles), dim=self.dim if dim is None else dim)
        return dict(zip(self.roles, chunks, strict=True))


def role_matrices(model: PlacedPreTrainedModel) -> Iterator[RoleMatrix]:
    """Yield every matrix of a model that has a role."""
    prefix = f"{model.base_model_prefix}."
    for name in model.state_dict():
        found = find_role(name.removeprefix(prefix), model.parameter_roles)
        if found is not None:
            role, block = found
            fused = role if isinstance(role, FusedRoles) else FusedRoles((role,), dim=0)
            yield RoleMatrix(name, block, fused.roles, fused.dim)
