"""Bytes that a training step moves between memory and arithmetic units outside matrix multiplications.

In narrow models these take as long as the multiplications. What compiled blocks read and write is counted: each
chain of elementwise operations between two multiplications is one kernel, which reads its inputs and writes its outputs
once.
"""

from __future__ import annotations

from dataclasses import dataclass

from mixln.estimate.parameters import ParameterCount
from mixln.estimate.shape import ModelShape
from mixln.placement import BlockPlan, SublayerPlan

FLOAT32 = 4
"""Bytes of a float32."""


@dataclass(frozen=True)
class Traffic:
    """Bytes read and written.

    Attributes:
        token_blocks: for each token, in all blocks, forward and backward.
        token_ends: for each token, in embedding, final norm and loss.
        micro_batch: for each micro-batch: weights cast to low precision, their gradients back and summed.
        optimizer_step: for each step: the optimiser's state, weights and gradients; the norm of the gradients.
    """

    token_blocks: float
    token_ends: float
    micro_batch: float
    optimizer_step: float


def count_traffic(
    shape: ModelShape,
    parameters: ParameterCount,
    *,
    low: int,
    explicit_attention: bool,
    activation_checkpointing: bool,
    clips: bool,
) -> Traffic:
    """Return the bytes that training moves, on one device that holds the whole model.

    Args:
        shape: sizes of the model.
        parameters: its parameters.
        low: bytes of a number in the dtype that matrices are multiplied in.
        explicit_attention: whether scores and probabilities go through memory.
        activation_checkpointing: whether the blocks' forward is computed again.
        clips: whether gradients are clipped.
    """
    forward = sum(_block_forward(shape, block, low, explicit_attention) for block in shape.blocks)
    backward = sum(_block_backward(shape, block, low, explicit_attention) for block in shape.blocks)
    d = shape.hidden
    embedding = 4 * FLOAT32 * d
    final_norm = (FLOAT32 + low) * d + (3 * FLOAT32 + low) * d
    # log-sum-exp reads the logits twice, the gradient reads them once more and is written; the mean of both passes
    loss = 4 * low * shape.vocabulary + 4 * low * d
    cast = (low + FLOAT32) if low < FLOAT32 else 0
    return Traffic(
        token_blocks=forward * (2 if activation_checkpointing else 1) + backward,
        token_ends=embedding + final_norm + loss,
        # cast there, gradient cast back, and added to the gradient so far; the embedding's gradient is float32
        micro_batch=(2 * cast + 3 * FLOAT32) * parameters.multiplied + 4 * FLOAT32 * parameters.embedding,
        # read weight, gradient, two moments; write weight and moments; read gradients for their norm
        optimizer_step=(8 + 2 * clips) * FLOAT32 * parameters.total,
    )


def _block_forward(shape: ModelShape, block: BlockPlan, low: int, explicit_attention: bool) -> float:
    d, i, q, kv = shape.hidden, shape.intermediate, shape.query_width, shape.key_value_width
    norms = _norms(block) * (FLOAT32 + low) * d  # read the stream, write the branch's input
    additions = 2 * (2 * FLOAT32 + low) * d  # read stream and branch, write stream
    rotation_and_layout = 2 * low * (q + 2 * kv) + 2 * low * q  # q, k, v to heads; heads to tokens
    # scale and mask; then a pass each for maximum, sum and quotient
    scores = 6 * low * shape.sequence * shape.heads if explicit_attention else low * (q + 2 * kv)
    return norms + additions + rotation_and_layout + scores + 3 * low * i


def _block_backward(shape: ModelShape, block: BlockPlan, low: int, explicit_attention: bool) -> float:
    d, i, q, kv = shape.hidden, shape.intermediate, shape.query_width, shape.key_value_width
    # read the stream, its gradient and those of the branch's input (one for each matrix); write the gradient
    norms = _norms(block) * (3 * FLOAT32 + 2 * low) * d
    additions = 2 * (FLOAT32 + low) * d  # the stream's gradient in low precision, for the branch
    rotation_and_layout = 2 * low * (q + 2 * kv) + 2 * low * q
    # probabilities again; a pass over them and their gradient for the sum, another that writes the scores' gradient
    scores = 6 * low * shape.sequence * shape.heads if explicit_attention else 3 * low * (q + 2 * kv)
    return norms + additions + rotation_and_layout + scores + 5 * low * i


def _norms(block: BlockPlan) -> int:
    return sum(norm is not None for part in (block.attention, block.feed_forward) for norm in _norms_of(part))


def _norms_of(part: SublayerPlan) -> tuple[object, ...]:
    return part.input_norm, part.branch_norm, part.output_norm
