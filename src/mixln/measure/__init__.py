"""What each layer of a model does: one pipeline, whatever is measured.

`observe` runs batches through a model once and shows them to any number of measures. A measure leaves the model as it
was, and does not depend on how the rows are cut into batches.
"""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from mixln.measure.batches import ModelBatch, model_batches
    from mixln.measure.calls import BlockCall
    from mixln.measure.estimates import Estimates
    from mixln.measure.forward import TokenBatch, evaluation_mode
    from mixln.measure.gradients import gradient_norms
    from mixln.measure.growth import StreamGrowth
    from mixln.measure.interventions import removals
    from mixln.measure.loss import EvaluationLoss
    from mixln.measure.observation import Measure, observe
    from mixln.measure.performance import EmbeddingTurn, LanguageModelLoss
    from mixln.measure.performance_drop import PerformanceDrop
    from mixln.measure.recording import BlockRecord, record_block_inputs, run_blocks
    from mixln.measure.similarity import Similarity
    from mixln.measure.stack import BlockStack, find_block_stack
else:
    from mixln.lazy import lazy_names

    __getattr__, __dir__ = lazy_names(__name__)

__all__ = [
    "BlockCall",
    "BlockRecord",
    "BlockStack",
    "EmbeddingTurn",
    "Estimates",
    "EvaluationLoss",
    "LanguageModelLoss",
    "Measure",
    "ModelBatch",
    "PerformanceDrop",
    "Similarity",
    "StreamGrowth",
    "TokenBatch",
    "evaluation_mode",
    "find_block_stack",
    "gradient_norms",
    "model_batches",
    "observe",
    "record_block_inputs",
    "removals",
    "run_blocks",
]
