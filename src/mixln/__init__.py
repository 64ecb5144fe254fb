"""mixln: transformers whose depth counts.

Importing it registers its architectures with transformers' Auto classes.
"""

from mixln.models import MixLNLlamaConfig, MixLNLlamaForCausalLM, MixLNLlamaModel
from mixln.placement import Placement, PlacementError, register_modifier, register_scheme
from mixln.placement import list_modifiers as modifiers
from mixln.placement import list_schemes as schemes

__version__ = "0.1.0"

__all__ = [
    "MixLNLlamaConfig",
    "MixLNLlamaForCausalLM",
    "MixLNLlamaModel",
    "Placement",
    "PlacementError",
    "modifiers",
    "register_modifier",
    "register_scheme",
    "schemes",
]
