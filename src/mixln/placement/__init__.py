"""Where the norms of a transformer stand, as data, and the one module that executes it. Pure PyTorch.

Plans, registry and text form need no PyTorch; it is imported with the first name that does.
"""

import importlib
from typing import TYPE_CHECKING, Any

from mixln.placement import schemes as schemes
from mixln.placement.plan import NORM as NORM
from mixln.placement.plan import BlockPlan as BlockPlan
from mixln.placement.plan import InitRule as InitRule
from mixln.placement.plan import NormPlan as NormPlan
from mixln.placement.plan import PlacementError as PlacementError
from mixln.placement.plan import PlacementWarning as PlacementWarning
from mixln.placement.plan import QKVNormPlan as QKVNormPlan
from mixln.placement.plan import Role as Role
from mixln.placement.plan import StackPlan as StackPlan
from mixln.placement.plan import SublayerPlan as SublayerPlan
from mixln.placement.registry import Entry as Entry
from mixln.placement.registry import Interval as Interval
from mixln.placement.registry import find_entry as find_entry
from mixln.placement.registry import list_modifiers as list_modifiers
from mixln.placement.registry import list_schemes as list_schemes
from mixln.placement.registry import register_modifier as register_modifier
from mixln.placement.registry import register_scheme as register_scheme
from mixln.placement.text import Placement as Placement

if TYPE_CHECKING:
    from mixln.placement.initialization import FusedRoles as FusedRoles
    from mixln.placement.initialization import ParameterRole as ParameterRole
    from mixln.placement.initialization import draw as draw
    from mixln.placement.initialization import find_role as find_role
    from mixln.placement.initialization import initialize as initialize
    from mixln.placement.norms import ArchitectureNorm as ArchitectureNorm
    from mixln.placement.norms import DynamicErf as DynamicErf
    from mixln.placement.norms import DynamicTanh as DynamicTanh
    from mixln.placement.norms import GroupedNorm as GroupedNorm
    from mixln.placement.norms import PointwiseNorm as PointwiseNorm
    from mixln.placement.norms import norm_factory as norm_factory
    from mixln.placement.profile import has_residual_scales_to_profile as has_residual_scales_to_profile
    from mixln.placement.profile import profile_residual_scales as profile_residual_scales
    from mixln.placement.profile import set_residual_scales as set_residual_scales
    from mixln.placement.residual import ActivationGate as ActivationGate
    from mixln.placement.residual import Block as Block
    from mixln.placement.residual import DropPath as DropPath
    from mixln.placement.residual import LayerScale as LayerScale
    from mixln.placement.residual import NormFactory as NormFactory
    from mixln.placement.residual import PlacedBlock as PlacedBlock
    from mixln.placement.residual import Residual as Residual

_NEEDING_PYTORCH = {
    "initialization": ("FusedRoles", "ParameterRole", "draw", "find_role", "initialize"),
    "norms": ("ArchitectureNorm", "DynamicErf", "DynamicTanh", "GroupedNorm", "PointwiseNorm", "norm_factory"),
    "profile": ("has_residual_scales_to_profile", "profile_residual_scales", "set_residual_scales"),
    "residual": ("ActivationGate", "Block", "DropPath", "LayerScale", "NormFactory", "PlacedBlock", "Residual"),
}


def __getattr__(name: str) -> Any:
    for module, names in _NEEDING_PYTORCH.items():
        if name in names:
            return getattr(importlib.import_module(f"{__name__}.{module}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
