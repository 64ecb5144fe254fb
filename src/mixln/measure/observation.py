"""One pass over the batches, shared by every measure that wants to see it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, nullcontext
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
from torch import nn

from mixln.errors import InputError
from mixln.measure.batches import ModelBatch, model_batches
from mixln.measure.forward import TokenBatch, autocast
from mixln.measure.recording import BlockRecord, block_that_does_not_repeat, recording
from mixln.models.anatomy import BlockStack, find_block_stack
from mixln.modes import evaluation_mode

Tick = Callable[[], object]
"""Called after each step of something that takes long, for who shows how far it is."""


def no_tick() -> None:
    """Nobody wants to know."""


@dataclass(frozen=True)
class Observation:
    """One batch that has been through the model.

    Attributes:
        stack: the model's blocks.
        batch: what went through.
        record: what the blocks saw.
        tick: for measures to call, as often for each batch as their `num_ticks` says.
    """

    stack: BlockStack
    batch: ModelBatch
    record: BlockRecord
    tick: Tick = no_tick

    @property
    def hidden_states(self) -> list[torch.Tensor]:
        """x_1 .. x_(L+1), (rows, tokens, hidden) each."""
        return self.record.hidden_states

    def reason_against(self, measures: Sequence[Measure | type[Measure]]) -> str:
        """Why measures cannot be taken of these blocks, in a sentence; empty if they can."""
        name = self.stack.name
        if any(measure.reads_tokens for measure in measures):
            shapes = {tuple(state.shape): state for state in self.hidden_states}
            odd = next((shape for shape, state in shapes.items() if not has_tokens(state, self.batch)), None)
            if odd is not None or len(shapes) > 1:
                return (
                    f"The blocks of {name} are given hidden states of shape {' and '.join(map(str, shapes))}, which "
                    "are not one vector of the same width for each token of each row"
                )
        if any(measure.replays_blocks for measure in measures):
            index = block_that_does_not_repeat(self.stack, self.record)
            if index is not None:
                return (
                    f"Block {index + 1} of {name} gives something else when it runs again on what it was given: it "
                    "keeps something beside its output"
                )
        return ""


class Measure:
    """Something that a pass over the batches finds out; subclasses override what they need.

    Attributes:
        reads_tokens: whether it needs hidden states of (rows, tokens, hidden), as most blocks have them.
        replays_blocks: whether it runs blocks again on what they were given, and needs what they gave.
    """

    reads_tokens: ClassVar[bool] = False
    replays_blocks: ClassVar[bool] = False

    def watch(self, stack: BlockStack) -> AbstractContextManager[object]:  # noqa: ARG002 - for subclasses
        """Entered around the forward pass of each batch: the place for hooks on modules of the blocks."""
        return nullcontext()

    def see_output(self, output: Any, batch: ModelBatch) -> None:
        """Told what the model returned, before `update`: logits are the largest tensor, and are freed then."""

    def num_ticks(self, num_blocks: int) -> int:
        """How many steps `update` takes, each about as long as a pass through the model; 0: it takes no time."""
        del num_blocks
        return 0

    def update(self, observation: Observation) -> None:
        """Count a batch. Dropout is off, there are no gradients, and the observation is gone afterwards."""


def observe(
    model: nn.Module | BlockStack,
    batches: Iterable[TokenBatch | ModelBatch],
    measures: Sequence[Measure],
    *,
    autocast_dtype: torch.dtype | None = None,
    tick: Tick = no_tick,
) -> BlockStack:
    """Run every batch through the model once, and show it to all measures.

    The hidden states of one batch are in memory at a time. The model, its hooks and its mode are left as they were.

    Args:
        model: any model whose blocks `find_block_stack` finds, or the blocks that it has found.
        batches: read through once.
        measures: what to show them to, in this order.
        autocast_dtype: autocast to this; None: the model's own precision.
        tick: called after the pass of each batch, and after each step that a measure takes for it.

    Raises:
        InputError: the blocks are not found, or do not feed each other, or are not of the kind that a measure needs;
            or their hidden states are not finite.
    """
    stack = block_stack_of(model)
    with evaluation_mode(stack.model), torch.no_grad(), autocast(stack.model, autocast_dtype):
        for number, batch in enumerate(model_batches(batches)):
            observation = replace(observed(stack, batch, measures), tick=tick)
            tick()
            if number == 0:
                few = observed(stack, batch.rows(0, 1))
                if reason := few.reason_against(measures):
                    raise InputError(f"{reason}. Name another list of blocks with `stack`, or leave this measure out")
            for measure in measures:
                measure.update(observation)
    return stack


def block_stack_of(model: nn.Module | BlockStack) -> BlockStack:
    """The blocks of a model, found if they are not yet.

    Raises:
        InputError: as `find_block_stack`.
    """
    return model if isinstance(model, BlockStack) else find_block_stack(model)


def observed(stack: BlockStack, batch: ModelBatch, measures: Sequence[Measure] = ()) -> Observation:
    """Run a batch through the model once, with measures watching. Mode, gradients and autocast are the caller's.

    Raises:
        InputError: the blocks do not feed each other, or their hidden states are not finite.
    """
    with ExitStack() as watching:
        for measure in measures:
            watching.enter_context(measure.watch(stack))
        with recording(stack) as record:
            output = batch.run(stack.model)
    require_finite_states(stack, record.hidden_states, batch)
    for measure in measures:
        measure.see_output(output, batch)
    return Observation(stack, batch, record)


def require_finite_states(stack: BlockStack, states: Sequence[torch.Tensor], batch: ModelBatch) -> None:
    """Make sure that what goes through the blocks are numbers, wherever a token counts.

    Raises:
        InputError: they are not; names the first block that gives something else.
    """
    for index, state in enumerate(states):
        # a sum is finite only if all are, and takes no memory; padding may hold anything
        if state.sum(dtype=torch.promote_types(state.dtype, torch.float32)).isfinite():
            continue
        counted = state[batch.counted_in(state)] if has_tokens(state, batch) else state
        if bad := int((~counted.isfinite()).sum()):
            where = f"block {index} of {stack.name}" if index else f"what stands before {stack.name}"
            raise InputError(
                f"{where} gives {bad} hidden states that are infinite or not a number (NaN), of {counted.numel()}, in "
                f"{str(state.dtype).removeprefix('torch.')}. If the weights are right, this precision cannot hold "
                "them: load the model in float32 or bfloat16"
            )


def has_tokens(state: torch.Tensor, batch: ModelBatch) -> bool:
    """Whether hidden states are (rows, tokens, hidden) of a batch."""
    if batch.counted is not None:
        return state.ndim == 3 and state.shape[:2] == batch.counted.shape
    return state.ndim == 3 and len(state) == len(batch.documents)


def chunks_of_tokens(
    states: Sequence[torch.Tensor], counted: torch.Tensor, size: int
) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """The counted tokens, a few at a time, so that wide temporaries stay small.

    Yields:
        (tokens, states, hidden) in float64 where the device has it, and (tokens,) the row that each is of.
    """
    rows, positions = counted.nonzero(as_tuple=True)
    device = torch.device("cpu") if states[0].device.type == "mps" else states[0].device
    for start in range(0, len(rows), size):
        chosen = rows[start : start + size], positions[start : start + size]
        yield torch.stack([_at(state, *chosen).to(device) for state in states], dim=1).double(), chosen[0]


def _at(state: torch.Tensor, rows: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
    return state[rows.to(state.device), positions.to(state.device)]


def sum_by_row(values: torch.Tensor, rows: torch.Tensor, num_rows: int) -> torch.Tensor:
    """Sum (tokens, ...) values into (num_rows, ...), by the row that each token is of."""
    return values.new_zeros(num_rows, *values.shape[1:]).index_add_(0, rows.to(values.device), values)
