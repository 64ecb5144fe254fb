"""The repeated blocks of any model: finding them, watching what goes through them, running them again.

    embedding ... -> x_1 -> block 1 -> x_2 -> ... -> block L -> x_(L+1) -> ... final norm, head

No list of model names is needed. The blocks are the list of modules of which each one's output feeds the next; that is
checked on every forward pass that is recorded. What comes before and behind them is never taken apart: to run it, the
whole model is run with its blocks bypassed, so caps, scales, projections and poolers are the model's own.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import nn

from mixln.depth.forward import TokenBatch, autocast, batch_logits, evaluation_mode
from mixln.errors import InputError

_HIDDEN_STATES = "hidden_states"


BlockList = nn.ModuleList | nn.Sequential


@dataclass(frozen=True)
class BlockStack:
    """The blocks of a model.

    Attributes:
        model: the model.
        name: where the blocks are in it, such as `model.layers`.
        layers: the L blocks, in the order in which they run.
    """

    model: nn.Module
    name: str
    layers: BlockList


class BlockCall(NamedTuple):
    """The arguments of one call of one block, its hidden states among them, and what it returned beside them."""

    args: tuple[Any, ...]
    kwargs: dict[str, Any]

    @property
    def hidden_states(self) -> torch.Tensor:
        """The block's input x_l, (batch, sequence, hidden)."""
        if not self.args and _HIDDEN_STATES not in self.kwargs:
            raise InputError(
                f"a block is called with {', '.join(self.kwargs)}, and not with {_HIDDEN_STATES} or a first argument: "
                "its input cannot be told. Name another list of blocks with --layers"
            )
        return self.args[0] if self.args else self.kwargs[_HIDDEN_STATES]

    def replay(self, block: nn.Module, hidden_states: torch.Tensor) -> torch.Tensor:
        """The output of `block` on other hidden states, the rest (mask, position embeddings ...) as recorded."""
        if self.args:
            return block_output(block(hidden_states, *self.args[1:], **self.kwargs))
        return block_output(block(**{**self.kwargs, _HIDDEN_STATES: hidden_states}))


@dataclass(frozen=True)
class BlockRecord:
    """One forward pass as the blocks saw it.

    Attributes:
        hidden_states: x_1 .. x_{L+1}, each (batch, sequence, hidden): the input of each block, then the last block's
            output BEFORE the final norm (the last entry of Hugging Face's `hidden_states` is after it).
        calls: how each of the L blocks was called.
        other_outputs: what each block returned beside its hidden states, if it returned a tuple; else None.
    """

    hidden_states: list[torch.Tensor] = field(default_factory=list)
    calls: list[BlockCall] = field(default_factory=list)
    other_outputs: list[tuple[Any, ...] | None] = field(default_factory=list)


def find_block_stack(model: nn.Module, layers: str | None = None) -> BlockStack:
    """Find the repeated blocks of a model.

    Candidates are the lists of modules (`nn.ModuleList`, `nn.Sequential` of one class) that hold parameters and lie in
    no other candidate. One is taken if it is the only one, or if the config of a model that is not an encoder-decoder
    says `num_hidden_layers` and only it is so long. That the blocks feed each other is checked when the model runs.

    Args:
        model: any module; usually a Hugging Face model.
        layers: the name of the list in the model, such as `model.layers`, where it cannot be told.

    Raises:
        InputError: there is none, it is empty, or there are several; the message names the candidates.
    """
    candidates = _candidates(model)
    if layers is not None:
        return BlockStack(model, layers, _named_list(model, layers, candidates))
    chosen = list(candidates)
    if len(chosen) > 1 and not getattr(getattr(model, "config", None), "is_encoder_decoder", False):
        length = _config_length(model)
        chosen = [name for name in chosen if len(candidates[name]) == length] or chosen
    if len(chosen) != 1:
        kind = type(model).__name__
        if not chosen:
            raise InputError(f"a {kind} has no list of blocks (nn.ModuleList). Give a model that has one")
        raise InputError(
            f"which list holds the blocks of a {kind} is not clear: {_listing(candidates)}. Name one: "
            f"--layers {chosen[0]} (in Python: layers={chosen[0]!r})"
        )
    return BlockStack(model, chosen[0], candidates[chosen[0]])


def block_stack_of(model: nn.Module | BlockStack) -> BlockStack:
    """The blocks of a model, found if they are not yet.

    Raises:
        InputError: as `find_block_stack`.
    """
    return model if isinstance(model, BlockStack) else find_block_stack(model)


def _candidates(model: nn.Module) -> dict[str, BlockList]:
    found: dict[str, BlockList] = {}
    for name, module in model.named_modules():
        if any(name.startswith(f"{outer}.") for outer in found):
            continue
        if isinstance(module, nn.Sequential) and (len(module) < 2 or len({type(child) for child in module}) > 1):
            continue
        if (
            isinstance(module, BlockList)
            and len(module)
            and all(next(child.parameters(), None) is not None for child in module)
        ):
            found[name] = module
    return found


def _config_length(model: nn.Module) -> int | None:
    config = getattr(model, "config", None)
    if config is None:
        return None
    text = config.get_text_config() if hasattr(config, "get_text_config") else config
    return getattr(text, "num_hidden_layers", None)


def _named_list(model: nn.Module, name: str, candidates: Mapping[str, BlockList]) -> BlockList:
    try:
        module = model.get_submodule(name)
    except AttributeError:
        module = None
    if not isinstance(module, BlockList) or not len(module):
        what = "is not there" if module is None else f"is a {type(module).__name__}, not a list of blocks"
        raise InputError(f"--layers {name}: {what}. A {type(model).__name__} has {_listing(candidates)}")
    return module


def _listing(candidates: Mapping[str, BlockList]) -> str:
    return ", ".join(f"{name} ({len(blocks)} x {type(blocks[0]).__name__})" for name, blocks in candidates.items())


@contextmanager
def recording(stack: BlockStack) -> Iterator[BlockRecord]:
    """Record the one forward pass that is run inside the `with` block; the record is complete after it.

    Raises:
        InputError: on leaving, if the blocks did not run once each, in order, each fed with the output of the one
            before.
    """
    record = BlockRecord()
    ran: list[int] = []
    outputs: list[torch.Tensor] = []

    def watch(index: int, block: nn.Module, hooks: ExitStack) -> None:
        def before(_block: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            ran.append(index)
            record.calls.append(BlockCall(args, kwargs))
            record.hidden_states.append(record.calls[-1].hidden_states)

        def after(_block: nn.Module, _args: tuple[Any, ...], output: Any) -> None:
            outputs.append(block_output(output))
            record.other_outputs.append(output[1:] if isinstance(output, tuple) else None)

        hooks.enter_context(block.register_forward_pre_hook(before, with_kwargs=True))
        hooks.enter_context(block.register_forward_hook(after))

    with ExitStack() as hooks:
        for index, block in enumerate(stack.layers):
            watch(index, block, hooks)
        yield record
    _check_chain(stack, ran, record.hidden_states, outputs)
    record.hidden_states.append(outputs[-1])


def _check_chain(stack: BlockStack, ran: list[int], inputs: list[torch.Tensor], outputs: list[torch.Tensor]) -> None:
    expected = len(stack.layers)
    if ran != list(range(expected)) or len(outputs) != expected:
        raise InputError(
            f"{len(ran)} block calls in one forward pass of a model of {expected} blocks ({stack.name}); the depth "
            "measures need each block to run once, in order (no shared or skipped blocks). If the blocks are "
            "elsewhere, name them with --layers"
        )
    for number, (output, following) in enumerate(zip(outputs, inputs[1:], strict=False), start=1):
        if not _same(output, following):
            raise InputError(
                f"the output of block {number} of {stack.name} is not the input of block {number + 1}: something "
                "between them changes it, so the list is not the residual stream. Name the blocks with --layers"
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


def _same(one: torch.Tensor, other: torch.Tensor) -> bool:
    if one is other:
        return True
    return one.shape == other.shape and torch.equal(one, other.to(one.device))


def run_blocks(
    stack: BlockStack, hidden_states: torch.Tensor, record: BlockRecord, indices: Sequence[int] | range
) -> torch.Tensor:
    """Send `hidden_states` (batch, sequence, hidden) through the blocks with these indices (from 0), in this order.

    Each block gets what it got when it was recorded, other hidden states apart. Mode, autocast and gradients are the
    caller's.
    """
    for index in indices:
        hidden_states = record.calls[index].replay(stack.layers[index], hidden_states)
    return hidden_states


def run_tail(stack: BlockStack, hidden_states: torch.Tensor, record: BlockRecord, arguments: Mapping[str, Any]) -> Any:
    """The model's own output for another output of its last block: the model runs with its blocks bypassed.

    Args:
        stack: the model's blocks.
        hidden_states: to take the place of x_(L+1), (batch, sequence, hidden).
        record: of a forward pass with these arguments.
        arguments: of the model.
    """
    forwards = {
        block: _constant(hidden_states if others is None else (hidden_states, *others))
        for block, others in zip(stack.layers, record.other_outputs, strict=True)
    }
    with replaced_forwards(forwards):
        return stack.model(**arguments)


def _constant(value: Any) -> Callable[..., Any]:
    def forward(*_args: Any, **_kwargs: Any) -> Any:
        return value

    return forward


@contextmanager
def replaced_forwards(forwards: Mapping[nn.Module, Callable[..., Any]]) -> Iterator[None]:
    """Give modules another `forward` inside the `with` block."""
    own = {module: module.__dict__.get("forward") for module in forwards}
    try:
        for module, forward in forwards.items():
            module.__dict__["forward"] = forward
        yield
    finally:
        for module, before in own.items():
            if before is None:
                module.__dict__.pop("forward", None)
            else:
                module.__dict__["forward"] = before


def block_output(output: Any) -> torch.Tensor:
    """The hidden states in what a block returns: a tensor, or a tuple that begins with it."""
    return output[0] if isinstance(output, tuple) else output
