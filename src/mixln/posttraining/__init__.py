"""Training that begins with a trained model."""

from mixln.posttraining.heal import HealingConfig, heal, validation_loss
from mixln.posttraining.pretrained import LowRankConfig, PretrainedModel

__all__ = ["HealingConfig", "LowRankConfig", "PretrainedModel", "heal", "validation_loss"]
