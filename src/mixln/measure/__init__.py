"""What each layer of a model does: one pipeline, whatever is measured.

`observe` runs batches through a model once and shows them to any number of measures. A measure leaves the model as it
was, and does not depend on how the rows are cut into batches.
"""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from mixln.measure.batches import ModelBatch as ModelBatch
    from mixln.measure.batches import model_batches as model_batches
    from mixln.measure.gradients import gradient_norms as gradient_norms
    from mixln.measure.growth import StreamGrowth as StreamGrowth
    from mixln.measure.interventions import removals as removals
    from mixln.measure.observation import Measure as Measure
    from mixln.measure.observation import observe as observe
    from mixln.measure.performance import ClassificationLoss as ClassificationLoss
    from mixln.measure.performance import EvaluationLoss as EvaluationLoss
    from mixln.measure.performance import LanguageModelLoss as LanguageModelLoss
    from mixln.measure.performance_drop import PerformanceDrop as PerformanceDrop
    from mixln.measure.recording import record_block_inputs as record_block_inputs
    from mixln.measure.recording import run_blocks as run_blocks
    from mixln.measure.similarity import Similarity as Similarity
else:
    from mixln.lazy import lazy_names

    __getattr__, __dir__ = lazy_names(__name__)
