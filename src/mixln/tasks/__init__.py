"""What a run can train."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from mixln.tasks.build import build_model, check_model, model_config
    from mixln.tasks.fine_tuning import FineTuning
    from mixln.tasks.heal import validation_loss
    from mixln.tasks.healing_config import HealingConfig, LowRankConfig
    from mixln.tasks.pretraining import Pretraining, pretrain
    from mixln.tasks.recipe import ModelConfig, Recipe, TextTrainingConfig
else:
    from mixln.lazy import lazy_names

    __getattr__, __dir__ = lazy_names(__name__)

__all__ = [
    "FineTuning",
    "HealingConfig",
    "LowRankConfig",
    "ModelConfig",
    "Pretraining",
    "Recipe",
    "TextTrainingConfig",
    "build_model",
    "check_model",
    "model_config",
    "pretrain",
    "validation_loss",
]
