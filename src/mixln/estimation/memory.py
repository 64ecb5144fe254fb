"""Memory of one device in training, tensor by tensor, for each way of sharing a model among devices."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields
from functools import cached_property

from mixln.estimation.parameters import ParameterCount
from mixln.estimation.shape import FLOAT32, ModelShape
from mixln.placement import BlockPlan
from mixln.tasks.linear_cross_entropy import CHUNK_LOGITS


@dataclass(frozen=True)
class ShardingPlan:
    """How a model and its batch are shared among devices.

    Attributes:
        strategy: ddp: each device holds everything (also if there is one device only); fsdp: a part of it.
        devices: their number.
        tensor_parallel_size: so many devices split the matrices of every block.
        activation_checkpointing: whether a block keeps its input alone.
    """

    strategy: str
    devices: int
    tensor_parallel_size: int = 1
    activation_checkpointing: bool = False

    @property
    def data_shares(self) -> int:
        """Number of shares that the rows of a batch are divided into."""
        return self.devices // self.tensor_parallel_size

    @property
    def label(self) -> str:
        """What the plan is called in a table."""
        parts = ["single device" if self.devices == 1 else self.strategy]
        parts += [f"tensor parallel {self.tensor_parallel_size}"] * (self.tensor_parallel_size > 1)
        parts += ["activation checkpointing"] * self.activation_checkpointing
        return " + ".join(parts)


@dataclass(frozen=True)
class MemoryUse:
    """Bytes on one device at the moment when most are in use before the backward: after the last micro-batch's loss.

    Attributes:
        weights: float32.
        gradients: float32, those that exist before the backward.
        optimizer: Adam's two moments, float32.
        copies: weights in the dtype that matrices are multiplied in, and weights gathered from other devices.
        activations: what the blocks keep for the backward.
        loss_head: the loss: a chunk of logits and its gradient, the gradients of hidden states and head weight.
        backward_extra: by how much the end of the backward (no activations, all gradients) exceeds the sum of the
            others; mostly 0.
        libraries: memory outside of tensors: PyTorch's own, compiled code.
    """

    weights: float
    gradients: float
    optimizer: float
    copies: float
    activations: float
    loss_head: float
    backward_extra: float = 0.0
    libraries: float = 0.0

    @cached_property
    def total(self) -> float:
        """The peak."""
        return sum(getattr(self, part.name) for part in fields(self))


@dataclass(frozen=True)
class MicroBatch:
    """The rows that a device computes at a time.

    Attributes:
        rows: sequences in one forward and backward.
        count: micro-batches in one optimiser step.
    """

    rows: int
    count: int

    @classmethod
    def of(cls, batch_size: int, micro_batch_size: int | None, data_shares: int) -> MicroBatch:
        """Return how the rows of a batch are cut, if so many devices share them."""
        own = batch_size // data_shares
        rows = min(own, micro_batch_size or own)
        return cls(rows, math.ceil(own / rows))


def memory_use(
    shape: ModelShape,
    parameters: ParameterCount,
    plan: ShardingPlan,
    micro_batch: MicroBatch,
    *,
    low: int,
    explicit_attention: bool,
    libraries: float = 0.0,
) -> MemoryUse:
    """Return the bytes that one device needs.

    Args:
        shape: sizes of the model.
        parameters: its parameters.
        plan: how it is shared.
        micro_batch: rows at a time, and how many times a step.
        low: bytes of a number in the dtype that matrices are multiplied in.
        explicit_attention: whether scores and probabilities are kept for the backward.
        libraries: memory outside of tensors.
    """
    split = plan.tensor_parallel_size
    shards = plan.data_shares if plan.strategy == "fsdp" else 1
    blocks = parameters.in_blocks / split
    ends = parameters.total - parameters.in_blocks
    held = blocks + ends
    tokens = micro_batch.rows * shape.sequence

    weights = FLOAT32 * held / shards
    # before the last backward: DDP's buckets stay, and several micro-batches are summed up
    keeps_gradients = micro_batch.count > 1 or (plan.strategy == "ddp" and plan.devices > 1)
    gradients = weights if keeps_gradients else 0.0
    copies = _copies(shape, parameters, plan, low)
    activations = tokens * _activations(shape, plan, low, explicit_attention)
    loss_head = _loss_head(shape, round(tokens * shape.predicted_share), low)
    before_backward = gradients + copies + activations + loss_head
    # all gradients in float32, the weight's of head and embedding once whole on their way
    after_backward = weights + FLOAT32 * parameters.embedding + _gathered(parameters, plan, low)
    return MemoryUse(
        weights=weights,
        gradients=gradients,
        optimizer=2 * weights,
        copies=copies,
        activations=activations,
        loss_head=loss_head,
        backward_extra=max(0.0, after_backward - before_backward),
        libraries=libraries,
    )


def _copies(shape: ModelShape, parameters: ParameterCount, plan: ShardingPlan, low: int) -> float:
    """Weights beside the float32 ones while the loss is computed.

    Without FSDP a compiled block keeps the low-precision weights that it multiplied with until its backward, unless it
    is computed again then. With FSDP at most two blocks are gathered at a time, and the ends always.
    """
    head = low * shape.head_parameters if low < FLOAT32 else 0
    gathered = _gathered(parameters, plan, low)
    if gathered or low == FLOAT32:
        return head + gathered
    kept = max(parameters.blocks) if plan.activation_checkpointing else parameters.in_blocks
    return head + low * kept / plan.tensor_parallel_size


def _gathered(parameters: ParameterCount, plan: ShardingPlan, low: int) -> float:
    if plan.strategy != "fsdp" or plan.data_shares == 1:
        return 0.0
    ends = FLOAT32 * (parameters.total - parameters.in_blocks)
    return ends + 2 * low * max(parameters.blocks) / plan.tensor_parallel_size


def _activations(shape: ModelShape, plan: ShardingPlan, low: int, explicit_attention: bool) -> float:
    """Bytes for each token; the residual stream is float32."""
    split = plan.tensor_parallel_size
    by_block = [_block_activations(shape, block, low, split, explicit_attention) for block in shape.blocks]
    ends = FLOAT32 * shape.hidden  # the final norm's input
    if plan.activation_checkpointing:
        return FLOAT32 * shape.hidden * shape.layers + max(by_block) + ends
    return sum(by_block) + ends


def _block_activations(shape: ModelShape, block: BlockPlan, low: int, split: int, explicit_attention: bool) -> float:
    """What a compiled block keeps for its backward, for each token (checked against PyTorch's saved tensors).

    float32: the block's input; the stream between the sublayers, if it is a norm's output (else it is recomputed).
    Low precision: each input norm's output, or the feed-forward's input without one; the attention's output before and
    after its last matrix; the feed-forward's output, if it is normalised; q, k, v; gate, up and their product (of a
    feed-forward without a gate, the inner layer before and after its activation). With
    explicit attention: scores and probabilities of the row, (H, T) each; else the fused kernel's output and log-sums.
    """
    d, i = shape.hidden, shape.intermediate
    attention, feed_forward = block.attention, block.feed_forward
    stream = FLOAT32 * d * (1 + (attention.output_norm is not None))
    inputs = low * d * ((attention.input_norm is not None) + 1)
    branches = low * d * (1 + (feed_forward.branch_norm is not None or feed_forward.output_norm is not None))
    heads = 2 * low * shape.query_width  # queries, attention's output
    # the explicit form repeats grouped keys and values for each head
    heads += 2 * low * (shape.query_width if explicit_attention else shape.key_value_width)
    if explicit_attention:
        heads += 2 * low * shape.heads * shape.sequence + 2 * FLOAT32 * shape.heads
    else:
        heads += FLOAT32 * shape.heads
    inner = (shape.inner_matrices + 1) * low * i
    return stream + inputs + branches + (heads + inner) / split


def _loss_head(shape: ModelShape, tokens: int, low: int) -> float:
    """Chunked linear cross-entropy: 2^k logits at a time, never all of them.

    Logits of a chunk, whose place their gradient takes; the hidden states in low precision and their gradient; the
    head weight's gradient in float32, and a chunk's share of it in low precision.
    """
    chunk = min(tokens * shape.vocabulary, max(CHUNK_LOGITS, shape.vocabulary))
    return low * chunk + 2 * low * tokens * shape.hidden + (FLOAT32 + low) * shape.head_parameters
