"""mixln: transformers whose depth counts.

Importing it makes its architectures known to transformers' Auto classes. PyTorch, transformers and the models are
imported with the first name that needs them.
"""

from typing import TYPE_CHECKING

from mixln.auto_classes import register_on_demand
from mixln.version import __version__

if TYPE_CHECKING:
    from mixln.exchange.export import save_stock, stock_model
    from mixln.models import MixLNLlamaConfig, MixLNLlamaForCausalLM, MixLNLlamaModel
    from mixln.models.apply import PlacementChange, apply_placement, preview_placements
    from mixln.placement import Placement, PlacementError, register_modifier, register_scheme
    from mixln.placement import list_modifiers as modifiers
    from mixln.placement import list_schemes as schemes
    from mixln.studies.diagnose import diagnose
    from mixln.studies.diagnosis_config import DiagnosisConfig
else:
    from mixln.lazy import lazy_names

    _get, __dir__ = lazy_names(__name__)

    def __getattr__(name):
        if name.startswith("MixLN"):  # an architecture's class, which nobody has to list here
            from mixln import models

            return getattr(models, name)
        return _get(name)


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

register_on_demand()
