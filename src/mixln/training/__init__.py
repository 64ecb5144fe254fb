"""Training: the engine, which knows steps, batches, losses, checkpoints and processes, and not what it trains."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from mixln.training.callback import Callback, StepRecord, Verdict
    from mixln.training.callbacks.metrics import ReportStep, read_metrics
    from mixln.training.config import ExecutionConfig, FaultConfig, OptimizerConfig, TrainingConfig
    from mixln.training.interrupt import TrainingInterrupted
    from mixln.training.loop import TrainedModel, TrainingDivergedError, TrainingWarning, train
    from mixln.training.objective import Batch, Evaluation, Objective, Reduce, Share
    from mixln.training.precision import Precision, decide_precision
    from mixln.training.run_folder import MODEL_FOLDER, differences
    from mixln.training.schedule import learning_rate
    from mixln.training.task import Task
else:
    from mixln.lazy import lazy_names

    __getattr__, __dir__ = lazy_names(__name__)

__all__ = [
    "MODEL_FOLDER",
    "Batch",
    "Callback",
    "Evaluation",
    "ExecutionConfig",
    "FaultConfig",
    "Objective",
    "OptimizerConfig",
    "Precision",
    "Reduce",
    "ReportStep",
    "Share",
    "StepRecord",
    "Task",
    "TrainedModel",
    "TrainingConfig",
    "TrainingDivergedError",
    "TrainingInterrupted",
    "TrainingWarning",
    "Verdict",
    "decide_precision",
    "differences",
    "learning_rate",
    "read_metrics",
    "train",
]
