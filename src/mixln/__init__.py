"""mixln: transformers whose depth counts.

Importing it makes its architectures known to transformers' Auto classes. PyTorch, transformers and the models are
imported with the first name that needs them.
"""

from typing import TYPE_CHECKING

from mixln.auto_classes import register_on_demand
from mixln.version import __version__

if TYPE_CHECKING:
    from mixln.commands.compare import compare
    from mixln.commands.convert import convert
    from mixln.commands.data import prepare as prepare_data
    from mixln.commands.diagnose import diagnose
    from mixln.commands.estimate import estimate
    from mixln.commands.evaluate import evaluate
    from mixln.commands.export import export
    from mixln.commands.finetune import finetune
    from mixln.commands.generate import generate
    from mixln.commands.prune import prune
    from mixln.commands.remove_norm import remove_norm
    from mixln.commands.reproduce import reproduce
    from mixln.commands.reward import reward
    from mixln.commands.rlhf import rlhf
    from mixln.commands.train import train
    from mixln.exchange.export import save_stock, stock_model
    from mixln.models import MixLNLlamaConfig, MixLNLlamaForCausalLM, MixLNLlamaModel
    from mixln.models.apply import PlacementChange, apply_placement, preview_placements
    from mixln.placement import Placement, PlacementError, register_modifier, register_scheme
    from mixln.placement import list_modifiers as modifiers
    from mixln.placement import list_schemes as schemes
    from mixln.plugins import Plugin, load_installed_plugins, load_plugin, loaded_plugins
    from mixln.studies.diagnosis_config import DiagnosisConfig, register_measure
    from mixln.tasks.fine_tuning_config import FineTuningConfig
    from mixln.tasks.healing_config import HealingConfig
    from mixln.tasks.image_config import ImageTrainingConfig
    from mixln.tasks.norm_removal.config import NormRemovalConfig
    from mixln.tasks.policy_config import RLHFConfig
    from mixln.tasks.recipe import Recipe
    from mixln.tasks.reward_config import RewardConfig
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
    "FineTuningConfig",
    "HealingConfig",
    "ImageTrainingConfig",
    "MixLNLlamaConfig",
    "MixLNLlamaForCausalLM",
    "MixLNLlamaModel",
    "NormRemovalConfig",
    "Placement",
    "PlacementChange",
    "PlacementError",
    "Plugin",
    "RLHFConfig",
    "Recipe",
    "RewardConfig",
    "__version__",
    "apply_placement",
    "compare",
    "convert",
    "diagnose",
    "estimate",
    "evaluate",
    "export",
    "finetune",
    "generate",
    "load_installed_plugins",
    "load_plugin",
    "loaded_plugins",
    "modifiers",
    "prepare_data",
    "preview_placements",
    "prune",
    "register_measure",
    "register_modifier",
    "register_scheme",
    "remove_norm",
    "reproduce",
    "reward",
    "rlhf",
    "save_stock",
    "schemes",
    "stock_model",
    "train",
]

register_on_demand()
