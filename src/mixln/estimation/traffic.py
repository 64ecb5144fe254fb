"""Bytes that one device moves in a training step: to and from its memory, and to other devices.

In narrow models, what is read and written outside matrix multiplications takes as long as the multiplications. What
compiled blocks read and write is counted: each chain of elementwise operations between two multiplications is one
kernel, which reads its inputs and writes its outputs once.
"""

from __future__ import annotations

from mixln.estimation.memory import MicroBatch, ShardingPlan
from mixln.estimation.parameters import ParameterCount
from mixln.estimation.shape import FLOAT32, ModelShape
from mixln.placement import BlockPlan


def count_traffic(
    shape: ModelShape,
    parameters: ParameterCount,
    plan: ShardingPlan,
    *,
    tokens: float,
    micro_batches: int,
    low: int,
    explicit_attention: bool,
    clips: bool,
) -> float:
    """Return the bytes that one device reads and writes in an optimiser step.

    Args:
        shape: sizes of the model.
        parameters: its parameters.
        plan: how it is shared among devices.
        tokens: of the device in a step.
        micro_batches: that it computes them in.
        low: bytes of a number in the dtype that matrices are multiplied in.
        explicit_attention: whether scores and probabilities go through memory.
        clips: whether gradients are clipped.
    """
    forward = sum(_block_forward(shape, block, low, explicit_attention) for block in shape.blocks)
    backward = sum(_block_backward(shape, block, low, explicit_attention) for block in shape.blocks)
    blocks = forward * (2 if plan.activation_checkpointing else 1) + backward
    d = shape.hidden
    embedding = 4 * FLOAT32 * d
    final_norm = (FLOAT32 + low) * d + (3 * FLOAT32 + low) * d
    # log-sum-exp reads the logits twice, the gradient reads them once more and is written; the mean of both passes
    loss = shape.predicted_share * (4 * low * shape.vocabulary + 4 * low * d)
    cast = (low + FLOAT32) if low < FLOAT32 else 0
    # cast there, gradient cast back, and added to the gradient so far; the embedding's gradient is float32
    micro_batch = (2 * cast + 3 * FLOAT32) * parameters.multiplied + 4 * FLOAT32 * parameters.embedding
    # read weight, gradient, two moments; write weight and moments; read gradients for their norm
    optimizer_step = (8 + 2 * clips) * FLOAT32 * parameters.total
    split = plan.tensor_parallel_size
    return (
        tokens * (blocks / split + embedding + final_norm + loss)
        + micro_batches * micro_batch / split
        + optimizer_step / (plan.devices if plan.strategy == "fsdp" else 1)
    )


def _block_forward(shape: ModelShape, block: BlockPlan, low: int, explicit_attention: bool) -> float:
    d, i, q, kv = shape.hidden, shape.intermediate, shape.query_width, shape.key_value_width
    norms = _norms(block) * (FLOAT32 + low) * d  # read the stream, write the branch's input
    additions = 2 * (2 * FLOAT32 + low) * d  # read stream and branch, write stream
    rotation_and_layout = 2 * low * (q + 2 * kv) + 2 * low * q  # q, k, v to heads; heads to tokens
    # scale and mask; then a pass each for maximum, sum and quotient
    scores = 6 * low * shape.sequence * shape.heads if explicit_attention else low * (q + 2 * kv)
    return norms + additions + rotation_and_layout + scores + (shape.inner_matrices + 1) * low * i


def _block_backward(shape: ModelShape, block: BlockPlan, low: int, explicit_attention: bool) -> float:
    d, i, q, kv = shape.hidden, shape.intermediate, shape.query_width, shape.key_value_width
    # read the stream, its gradient and those of the branch's input (one for each matrix); write the gradient
    norms = _norms(block) * (3 * FLOAT32 + 2 * low) * d
    additions = 2 * (FLOAT32 + low) * d  # the stream's gradient in low precision, for the branch
    rotation_and_layout = 2 * low * (q + 2 * kv) + 2 * low * q
    # probabilities again; a pass over them and their gradient for the sum, another that writes the scores' gradient
    scores = 6 * low * shape.sequence * shape.heads if explicit_attention else 3 * low * (q + 2 * kv)
    # reads the product's gradient and each matrix's output, writes the gradient of each
    inner = (2 * shape.inner_matrices + 1) * low * i
    return norms + additions + rotation_and_layout + scores + inner


def _norms(block: BlockPlan) -> int:
    sublayers = block.attention, block.feed_forward
    norms = [norm for one in sublayers for norm in (one.input_norm, one.branch_norm, one.output_norm)]
    return sum(norm is not None for norm in norms)


def count_communication(
    shape: ModelShape, parameters: ParameterCount, plan: ShardingPlan, micro_batch: MicroBatch, *, low: int
) -> tuple[float, float]:
    """Return the bytes that one device sends in a step by ring algorithms, in which it receives as many.

    First those that are sent while computation goes on (gathered weights, reduced gradients), then those that
    computation waits for (sums of partial products in tensor parallelism). With n shares of the data and t devices that
    split the matrices:

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
    return overlapping, blocking
