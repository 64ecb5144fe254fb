"""Where the norms of a transformer stand, as data, and the one module that executes it. Pure PyTorch."""

from mixln.placement import schemes
from mixln.placement.initialize import draw, find_role, initialize
from mixln.placement.norms import architecture_norm, norm_factory
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
from mixln.placement.registry import Interval, list_modifiers, list_schemes, register_modifier, register_scheme
from mixln.placement.residual import ActivationGate, Block, NormFactory, PlacedBlock, Residual
from mixln.placement.text import Placement, Term

__all__ = [
    "NORM",
    "ActivationGate",
    "Block",
    "BlockPlan",
    "InitRule",
    "Interval",
    "NormFactory",
    "NormPlan",
    "PlacedBlock",
    "Placement",
    "PlacementError",
    "PlacementWarning",
    "QKVNormPlan",
    "Residual",
    "Role",
    "StackPlan",
    "SublayerPlan",
    "Term",
    "architecture_norm",
    "draw",
    "find_role",
    "initialize",
    "list_modifiers",
    "list_schemes",
    "norm_factory",
    "register_modifier",
    "register_scheme",
    "schemes",
]
