"""Training: the recipe, the loop, and what they need."""

from mixln.training.build import build_model
from mixln.training.config import (
    ExecutionConfig,
    FaultConfig,
    ModelConfig,
    OptimizerConfig,
    Recipe,
    model_config,
)
from mixln.training.faults import TrainingDivergedError
from mixln.training.interrupt import TrainingInterrupted
from mixln.training.loop import TrainedModel, TrainingWarning, train
from mixln.training.metrics import read_metrics
from mixln.training.precision import resolve_precision
from mixln.training.run_folder import MODEL_FOLDER, differences
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
    "TrainingInterrupted",
    "TrainingWarning",
    "build_model",
    "differences",
    "learning_rate",
    "model_config",
    "read_metrics",
    "resolve_precision",
    "train",
]
