"""Where the norms of a transformer stand, as data, and the one module that executes it. Pure PyTorch."""

from mixln.placement import schemes
from mixln.placement.describe import Description, OptionDescription, describe, describe_modifiers, describe_schemes
from mixln.placement.diagram import (
    BlockKind,
    Part,
    StackDescription,
    SublayerParts,
    block_parts,
    describe_stack,
    draw_block,
)
from mixln.placement.initialize import FusedRoles, ParameterRole, draw, find_role, initialize
from mixln.placement.norms import ArchitectureNorm, DynamicErf, DynamicTanh, GroupedNorm, PointwiseNorm, norm_factory
from mixln.placement.plan import (
    NORM,
    BlockPlan,
    InitRule,
    NormPlan,
    PlacementError,
    PlacementWarning,
    QKVNormPlan,
    Role,
    StackPlan,
    SublayerPlan,
)
from mixln.placement.profile import has_residual_scales_to_profile, profile_residual_scales, set_residual_scales
from mixln.placement.registry import Interval, list_modifiers, list_schemes, register_modifier, register_scheme
from mixln.placement.residual import ActivationGate, Block, NormFactory, PlacedBlock, Residual
from mixln.placement.text import Placement, Term

__all__ = [
    "NORM",
    "ActivationGate",
    "ArchitectureNorm",
    "Block",
    "BlockKind",
    "BlockPlan",
    "Description",
    "DynamicErf",
    "DynamicTanh",
    "FusedRoles",
    "GroupedNorm",
    "InitRule",
    "Interval",
    "NormFactory",
    "NormPlan",
    "OptionDescription",
    "ParameterRole",
    "Part",
    "PlacedBlock",
    "Placement",
    "PlacementError",
    "PlacementWarning",
    "PointwiseNorm",
    "QKVNormPlan",
    "Residual",
    "Role",
    "StackDescription",
    "StackPlan",
    "SublayerParts",
    "SublayerPlan",
    "Term",
    "block_parts",
    "describe",
    "describe_modifiers",
    "describe_schemes",
    "describe_stack",
    "draw",
    "draw_block",
    "find_role",
    "has_residual_scales_to_profile",
    "initialize",
    "list_modifiers",
    "list_schemes",
    "norm_factory",
    "profile_residual_scales",
    "register_modifier",
    "register_scheme",
    "schemes",
    "set_residual_scales",
]
