"""One pass over the batches, shared by every measure that wants to see it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from mixln.depth.batches import ModelBatch, model_batches
from mixln.depth.forward import TokenBatch, autocast, evaluation_mode, model_device
from mixln.depth.stack import BlockRecord, BlockStack, block_stack_of, recording, run_blocks, run_tail


@dataclass(frozen=True)
class Observation:
    """One batch that has been through the model.

    Attributes:
        stack: the model's blocks.
        batch: what went through.
        record: what the blocks saw.
    """

    stack: BlockStack
    batch: ModelBatch
    record: BlockRecord

    @property
    def hidden_states(self) -> list[torch.Tensor]:
        """x_1 .. x_(L+1), (rows, tokens, hidden) each."""
        return self.record.hidden_states

    def run_again(self, state: int, blocks: Sequence[int] | range) -> Any:
        """The model's output if x_(state+1) went through these blocks (from 0) instead of the rest."""
        hidden_states = run_blocks(self.stack, self.hidden_states[state], self.record, blocks)
        arguments = self.batch.arguments_on(model_device(self.stack.model))
        return run_tail(self.stack, hidden_states, self.record, arguments)


class Measure:
    """Something to be found out in a pass; subclasses override what they need."""

    def watch(self, stack: BlockStack) -> AbstractContextManager[object]:  # noqa: ARG002 - for subclasses
        """Entered around the forward pass of each batch: the place for hooks on modules of the blocks."""
        return nullcontext()

    def see_output(self, output: Any, batch: ModelBatch) -> None:
        """Told what the model returned, before `update`: logits are the largest thing there is, and are let go then."""

    def update(self, observation: Observation) -> None:
        """Count a batch. Dropout is off, there are no gradients, and the observation is gone afterwards."""


def observe(
    model: nn.Module | BlockStack,
    batches: Iterable[TokenBatch | ModelBatch],
    measures: Sequence[Measure],
    *,
    autocast_dtype: torch.dtype | None = None,
) -> BlockStack:
    """Run every batch through the model once, and show it to all measures.

    Of hidden states, one batch is in memory at a time. The model, its hooks and its mode are left as they were.

    Args:
        model: any model whose blocks `find_block_stack` finds, or the blocks that it has found.
        batches: read through once.
        measures: what to show them to, in this order.
        autocast_dtype: autocast to this; None: the model's own precision.

    Raises:
        InputError: the blocks are not found, or do not feed each other.
    """
    stack = block_stack_of(model)
    with evaluation_mode(stack.model), torch.no_grad(), autocast(stack.model, autocast_dtype):
        for batch in model_batches(batches):
            observation = _observe(stack, batch, measures)
            for measure in measures:
                measure.update(observation)
    return stack


def _observe(stack: BlockStack, batch: ModelBatch, measures: Sequence[Measure]) -> Observation:
    with ExitStack() as watching:
        for measure in measures:
            watching.enter_context(measure.watch(stack))
        with recording(stack) as record:
            output = stack.model(**batch.arguments_on(model_device(stack.model)))
    for measure in measures:
        measure.see_output(output, batch)
    return Observation(stack, batch, record)


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
