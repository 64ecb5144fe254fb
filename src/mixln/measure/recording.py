"""Watching what goes through a model's blocks, and running blocks, and what is around them, again.

What comes before and after the blocks is never taken apart: to run it, the whole model is run with its blocks
bypassed, so caps, scales, projections and poolers are the model's own.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from mixln.errors import InputError
from mixln.measure.calls import BlockCall, Working, block_output
from mixln.measure.comparison import difference, rounding
from mixln.measure.forward import TokenBatch, autocast, batch_logits, call_model
from mixln.models.anatomy import BlockStack, find_block_stack
from mixln.models.foreign import ModelCallError, naming_failures
from mixln.modes import evaluation_mode


@dataclass(frozen=True)
class BlockRecord:
    """One forward pass as the blocks saw it.

    Attributes:
        hidden_states: x_1 .. x_{L+1}, each (batch, sequence, hidden): the input of each block, then the last block's
            output BEFORE the final norm (the last entry of Hugging Face's `hidden_states` is after it).
        calls: how each of the L blocks was called.
        other_outputs: what each block returned beside its hidden states, if it returned a tuple or list; else None.
    """

    hidden_states: list[Tensor] = field(default_factory=list)
    calls: list[BlockCall] = field(default_factory=list)
    other_outputs: list[tuple[Any, ...] | None] = field(default_factory=list)

    def handed_on(self) -> dict[int, int | str]:
        """What blocks hand on to the next beside hidden states, such as a position bias or a choice of tokens.

        Returns:
            By its place in `other_outputs` of a block, the argument (by position or name) that it becomes of the next.
        """
        found: dict[int, int | str] = {}
        for others, call, following in zip(self.other_outputs, self.calls, self.calls[1:], strict=False):
            own = call.by_name()
            for place, value in enumerate(others or ()):
                names = [name for name, given in following.by_name().items() if given is value and name in own]
                if value is not None and names:
                    found.setdefault(place, names[0])
        return found


@contextmanager
def recording(stack: BlockStack) -> Iterator[BlockRecord]:
    """Record the one forward pass that is run inside the `with` block; the record is complete after it.

    Raises:
        InputError: on leaving, if the blocks did not run once each, in order, each fed with the output of the one
            before.
    """
    record = BlockRecord()
    ran: list[int] = []
    outputs: list[Tensor] = []

    def watch(index: int, block: nn.Module, hooks: ExitStack) -> None:
        def before(_block: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            ran.append(index)
            record.calls.append(BlockCall.seen(args, kwargs))
            record.hidden_states.append(record.calls[-1].hidden_states)

        def after(_block: nn.Module, _args: tuple[Any, ...], output: Any) -> None:
            outputs.append(block_output(output))
            record.other_outputs.append(beside_hidden_states(output))

        hooks.enter_context(block.register_forward_pre_hook(before, with_kwargs=True))
        hooks.enter_context(block.register_forward_hook(after))

    with ExitStack() as hooks:
        for index, block in enumerate(stack.layers):
            watch(index, block, hooks)
        yield record
    _check_chain(stack, ran, record.hidden_states, outputs)
    record.hidden_states.append(outputs[-1])


def _check_chain(stack: BlockStack, ran: list[int], inputs: list[Tensor], outputs: list[Tensor]) -> None:
    expected = len(stack.layers)
    if ran != list(range(expected)) or len(outputs) != expected:
        raise InputError(
            f"{len(ran)} block calls in one forward pass of a model of {expected} blocks ({stack.name}); the depth "
            "measures need each block to run once, in order (no shared or skipped blocks). If the blocks are "
            "elsewhere, name them with `stack`"
        )
    for number, (output, following) in enumerate(zip(outputs, inputs[1:], strict=False), start=1):
        # torch.equal is False of different shapes
        if output is not following and not torch.equal(output, following.to(output.device)):
            raise InputError(
                f"the output of block {number} of {stack.name} is not the input of block {number + 1}: something "
                "between them changes it, so the list is not the residual stream. Name the blocks with `stack`"
            )


def record_block_inputs(
    model: nn.Module, batch: TokenBatch, *, autocast_dtype: torch.dtype | None = None
) -> BlockRecord:
    """Hidden states and block calls of one forward pass, dropout off, without gradients.

    Args:
        model: a model whose blocks `find_block_stack` finds.
        batch: (batch, sequence) tokens.
        autocast_dtype: autocast to this; None: the model's own precision.

    Raises:
        InputError: the model's blocks are not found, or do not feed each other.
    """
    with evaluation_mode(model), torch.no_grad(), autocast(model, autocast_dtype):
        with recording(find_block_stack(model)) as record:
            batch_logits(model, batch)
        return record


def block_that_does_not_repeat(stack: BlockStack, record: BlockRecord) -> int | None:
    """The first block (from 0) that gives something else when it runs again on what it was given; None: none does."""
    for index, block in enumerate(stack.layers):
        given, gave = record.hidden_states[index : index + 2]
        try:
            with naming_failures("a block cannot be run again"):
                again = record.calls[index].replay(block, given)
        except ModelCallError:
            return index
        if not difference(gave, again) <= rounding(block.parameters(), gave):
            return index
    return None


def run_blocks(
    stack: BlockStack,
    hidden_states: Tensor,
    record: BlockRecord,
    indices: Sequence[int] | range,
    *,
    working: Working | None = None,
) -> Tensor:
    """Send `hidden_states` (batch, sequence, hidden) through the blocks with these indices (from 0), in this order.

    Each block gets what it got when it was recorded, other hidden states apart. Mode, autocast and gradients are the
    caller's. Whether it is what the model itself would compute is proven elsewhere (`mixln.measure.proof`).

    Args:
        stack: the model's blocks.
        hidden_states: to begin with.
        record: of a forward pass.
        indices: of the blocks, from 0.
        working: the dictionaries and lists that the blocks share; None: as they were before the first of these blocks.
    """
    if working is None:
        working = record.calls[indices[0]].working_copies() if len(indices) else {}
    for index in indices:
        hidden_states = record.calls[index].replay(stack.layers[index], hidden_states, working)
    return hidden_states


def run_tail(stack: BlockStack, hidden_states: Tensor, record: BlockRecord, arguments: Mapping[str, Any]) -> Any:
    """The model's own output for another output of its last block: the model runs with its blocks bypassed.

    Args:
        stack: the model's blocks.
        hidden_states: to take the place of x_(L+1), (batch, sequence, hidden).
        record: of a forward pass with these arguments.
        arguments: of the model.
    """

    def giving(value: Any) -> Callable[..., Any]:
        return lambda *_args, **_kwargs: value

    outputs = [with_beside(hidden_states, others) for others in record.other_outputs]
    with replaced_forwards(dict(zip(stack.layers, map(giving, outputs), strict=True))):
        return call_model(stack.model, arguments)


def beside_hidden_states(output: Any) -> tuple[Any, ...] | None:
    """What a block returned after its hidden states; None if it returned these alone."""
    return tuple(output[1:]) if isinstance(output, (tuple, list)) else None


def with_beside(hidden_states: Tensor, others: tuple[Any, ...] | None) -> Any:
    """What a block returns that has these hidden states, and these others beside them."""
    return hidden_states if others is None else (hidden_states, *others)


_HOOKS = (
    "_forward_pre_hooks",
    "_forward_pre_hooks_with_kwargs",
    "_forward_hooks",
    "_forward_hooks_with_kwargs",
    "_forward_hooks_always_called",
)


@contextmanager
def replaced_forwards(forwards: Mapping[nn.Module, Callable[..., Any]]) -> Iterator[Callable[[nn.Module], Any]]:
    """Give modules another `forward` inside the `with` block, and put their hooks aside, which go with their own.

    Yields:
        A function that gives one of them back its own for as long as a `with` block of its result lasts.
    """
    own = {module: {name: vars(module).get(name) for name in ("forward", *_HOOKS)} for module in forwards}
    others = {
        module: {"forward": forward, **{name: type(vars(module)[name])() for name in _HOOKS}}
        for module, forward in forwards.items()
    }

    @contextmanager
    def as_its_own(module: nn.Module) -> Iterator[None]:
        _set(module, own[module])
        try:
            yield
        finally:
            _set(module, others[module])

    try:
        for module, other in others.items():
            _set(module, other)
        yield as_its_own
    finally:
        for module, before in own.items():
            _set(module, before)


def _set(module: nn.Module, attributes: Mapping[str, Any]) -> None:
    for name, value in attributes.items():
        if value is None:
            vars(module).pop(name, None)
        else:
            vars(module)[name] = value
