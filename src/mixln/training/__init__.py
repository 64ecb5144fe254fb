"""Training: the engine, which knows steps, batches, losses, checkpoints and processes, and not what it trains."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from mixln.training.callback import Callback as Callback
    from mixln.training.callback import StepRecord as StepRecord
    from mixln.training.callback import Verdict as Verdict
    from mixln.training.callbacks.metrics import ReportStep as ReportStep
    from mixln.training.callbacks.metrics import read_metrics as read_metrics
    from mixln.training.config import ExecutionConfig as ExecutionConfig
    from mixln.training.config import FaultConfig as FaultConfig
    from mixln.training.config import OptimizerConfig as OptimizerConfig
    from mixln.training.config import TrainingConfig as TrainingConfig
    from mixln.training.interrupt import TrainingInterrupted as TrainingInterrupted
    from mixln.training.loop import TrainedModel as TrainedModel
    from mixln.training.loop import TrainingDivergedError as TrainingDivergedError
    from mixln.training.loop import TrainingWarning as TrainingWarning
    from mixln.training.loop import train as train
    from mixln.training.objective import Batch as Batch
    from mixln.training.objective import Evaluation as Evaluation
    from mixln.training.objective import Objective as Objective
    from mixln.training.objective import Reduce as Reduce
    from mixln.training.objective import Share as Share
    from mixln.training.optimizer import learning_rate as learning_rate
    from mixln.training.precision import Precision as Precision
    from mixln.training.precision import decide_precision as decide_precision
    from mixln.training.run_folder import MODEL_FOLDER as MODEL_FOLDER
    from mixln.training.run_folder import differences as differences
    from mixln.training.task import Task as Task
else:
    from mixln.lazy import lazy_names

    __getattr__, __dir__ = lazy_names(__name__)
