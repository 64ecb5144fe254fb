"""Bytes that one device sends to others in a training step."""

from __future__ import annotations

from dataclasses import dataclass

from mixln.estimate.memory import MicroBatch, ShardingPlan
from mixln.estimate.parameters import ParameterCount
from mixln.estimate.shape import ModelShape
from mixln.estimate.traffic import FLOAT32


@dataclass(frozen=True)
class Communication:
    """Bytes that one device sends in an optimiser step, by ring algorithms (as many as it receives).

    Attributes:
        overlapping: sent while computation goes on: gathered weights, reduced gradients.
        blocking: sent while computation waits: sums of partial products in tensor parallelism.
    """

    overlapping: float
    blocking: float


def count_communication(
    shape: ModelShape, parameters: ParameterCount, plan: ShardingPlan, micro_batch: MicroBatch, *, low: int
) -> Communication:
    """Return what one device sends in a step, with n shares of the data and t devices that split the matrices.

    - ddp: float32 gradients all-reduced once, 2 (n - 1) / n of their bytes;
    - fsdp: blocks gathered in low precision for each forward and backward, the rest in float32 once for each
      micro-batch, (n - 1) / n; float32 gradients reduce-scattered once, (n - 1) / n;
    - tensor parallelism: 4 all-reduces of a (tokens, d) tensor in low precision for each block, 2 (t - 1) / t.
    """
    shares, split = plan.data_shares, plan.tensor_parallel_size
    blocks = parameters.in_blocks / split
    ends = parameters.total - parameters.in_blocks
    held, apart = blocks + ends, (shares - 1) / shares
    overlapping = 2 * FLOAT32 * held * apart
    if plan.strategy == "fsdp":
        gathered = micro_batch.count * (2 * low * blocks + FLOAT32 * ends)
        overlapping = (gathered + FLOAT32 * held) * apart
    tokens = micro_batch.rows * micro_batch.count * shape.sequence
    forwards = 6 if plan.activation_checkpointing else 4
    blocking = forwards * shape.layers * low * shape.hidden * tokens * 2 * (split - 1) / split
    return Communication(overlapping=overlapping, blocking=blocking)
