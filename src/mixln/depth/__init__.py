"""What each layer of a decoder-only language model does: angular distance, removal, gradients, variance, loss.

Every measure takes a Hugging Face causal language model and an iterable of `TokenBatch`, leaves the model as it was,
and is independent of how the rows are cut into batches.
"""

from __future__ import annotations

from mixln.depth.angular import angular_distance, angular_distances, triangle
from mixln.depth.forward import TokenBatch, evaluation_mode
from mixln.depth.gradients import gradient_norm_by_layer
from mixln.depth.loss import EvaluationLoss, evaluation_loss, total_cross_entropy
from mixln.depth.measure import TrainedDepth, measure_trained_depth
from mixln.depth.removal import removal_loss_increase
from mixln.depth.stack import (
    BlockCall,
    BlockRecord,
    BlockStack,
    find_block_stack,
    record_block_inputs,
    run_blocks,
)
from mixln.depth.variance import variance_by_layer

__all__ = [
    "BlockCall",
    "BlockRecord",
    "BlockStack",
    "EvaluationLoss",
    "TokenBatch",
    "TrainedDepth",
    "angular_distance",
    "angular_distances",
    "evaluation_loss",
    "evaluation_mode",
    "find_block_stack",
    "gradient_norm_by_layer",
    "measure_trained_depth",
    "record_block_inputs",
    "removal_loss_increase",
    "run_blocks",
    "total_cross_entropy",
    "triangle",
    "variance_by_layer",
]
