"""mixln: transformers whose depth counts.

Importing it registers its architectures with transformers' Auto classes.
"""

from mixln.models import MixLNLlamaConfig, MixLNLlamaForCausalLM, MixLNLlamaModel
from mixln.placement import Placement, PlacementError, register_modifier, register_scheme
from mixln.placement import list_modifiers as modifiers
from mixln.placement import list_schemes as schemes
from mixln.version import __version__

__all__ = [
    "MixLNLlamaConfig",
    "MixLNLlamaForCausalLM",
    "MixLNLlamaModel",
    "Placement",
    "PlacementError",
    "__version__",
    "modifiers",
    "register_modifier",
    "register_scheme",
    "schemes",
]
