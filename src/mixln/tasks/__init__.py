"""What a run can train."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from mixln.tasks.build import build_model as build_model
    from mixln.tasks.build import check_model as check_model
    from mixln.tasks.build import model_config as model_config
    from mixln.tasks.fine_tuning import FineTuning as FineTuning
    from mixln.tasks.healing_config import HealingConfig as HealingConfig
    from mixln.tasks.healing_config import LowRankConfig as LowRankConfig
    from mixln.tasks.image_classification import ImageClassification as ImageClassification
    from mixln.tasks.image_classification import train_image_classifier as train_image_classifier
    from mixln.tasks.image_config import ImageTrainingConfig as ImageTrainingConfig
    from mixln.tasks.image_config import VisionModelConfig as VisionModelConfig
    from mixln.tasks.pretraining import Pretraining as Pretraining
    from mixln.tasks.pretraining import pretrain as pretrain
    from mixln.tasks.recipe import ModelConfig as ModelConfig
    from mixln.tasks.recipe import Recipe as Recipe
    from mixln.tasks.recipe import TextTrainingConfig as TextTrainingConfig
    from mixln.tasks.validation import validation_loss as validation_loss
else:
    from mixln.lazy import lazy_names

    __getattr__, __dir__ = lazy_names(__name__)
