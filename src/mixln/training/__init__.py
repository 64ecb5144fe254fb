"""Training: the recipe, the loop, and what they need."""

from mixln.training.config import (
    ExecutionConfig,
    FaultConfig,
    ModelConfig,
    OptimizerConfig,
    Recipe,
    model_config,
)
from mixln.training.loop import (
    MODEL_FOLDER,
    TrainedModel,
    TrainingDivergedError,
    build_model,
    differences,
    resolve_precision,
    train,
)
from mixln.training.metrics import read_metrics
from mixln.training.schedule import learning_rate

__all__ = [
    "MODEL_FOLDER",
    "ExecutionConfig",
    "FaultConfig",
    "ModelConfig",
    "OptimizerConfig",
    "Recipe",
    "TrainedModel",
    "TrainingDivergedError",
    "build_model",
    "differences",
    "learning_rate",
    "model_config",
    "read_metrics",
    "resolve_precision",
    "train",
]
