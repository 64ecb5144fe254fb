"""mixln: transformers whose depth counts.

Importing it registers its architectures with transformers' Auto classes.
"""

from typing import TYPE_CHECKING, Any

from mixln.models import MixLNLlamaConfig, MixLNLlamaForCausalLM, MixLNLlamaModel
from mixln.models.apply import apply_placement, preview_placements
from mixln.models.change import PlacementChange
from mixln.models.export import save_stock, stock_model
from mixln.placement import Placement, PlacementError, register_modifier, register_scheme
from mixln.placement import list_modifiers as modifiers
from mixln.placement import list_schemes as schemes
from mixln.version import __version__

if TYPE_CHECKING:
    from mixln.studies.diagnose import DiagnosisConfig, diagnose

__all__ = [
    "DiagnosisConfig",
    "MixLNLlamaConfig",
    "MixLNLlamaForCausalLM",
    "MixLNLlamaModel",
    "Placement",
    "PlacementChange",
    "PlacementError",
    "__version__",
    "apply_placement",
    "diagnose",
    "modifiers",
    "preview_placements",
    "register_modifier",
    "register_scheme",
    "save_stock",
    "schemes",
    "stock_model",
]


def __getattr__(name: str) -> Any:
    # diagnosis brings training and data along, which models do not need
    if name in ("DiagnosisConfig", "diagnose"):
        from mixln.studies import diagnose

        return getattr(diagnose, name)
    # an architecture's classes, which nobody has to list here
    from mixln import models

    try:
        return getattr(models, name)
    except AttributeError:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}") from None
