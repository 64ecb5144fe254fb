"""The blocks of a decoder-only model, what goes into each, and running them again on something else."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import nn

from mixln.depth.forward import TokenBatch, autocast, batch_logits, evaluation_mode
from mixln.errors import InputError

LAYERS_NAMES = ("layers", "h")
FINAL_NORM_NAMES = ("norm", "ln_f", "final_layer_norm")
HIDDEN_STATES = "hidden_states"


@dataclass(frozen=True)
class BlockStack:
    """The parts of a causal language model: logits = head(final_norm(block_L(... block_1(embedding)))).

    Attributes:
        decoder: the module that holds `layers` and `final_norm`.
        layers: the L blocks, in the order in which they run.
        final_norm: what stands between the last block and the head; `nn.Identity` in a model without norms.
        head: hidden states (..., hidden) to logits (..., vocabulary).
    """

    decoder: nn.Module
    layers: nn.ModuleList
    final_norm: nn.Module
    head: nn.Module

    def logits(self, hidden_states: torch.Tensor) -> torch.Tensor:
        """Last block's output (..., hidden) to logits (..., vocabulary)."""
        return self.head(self.final_norm(hidden_states))


class BlockCall(NamedTuple):
    """The arguments of one call of one block, its hidden states among them."""

    args: tuple[Any, ...]
    kwargs: dict[str, Any]

    @property
    def hidden_states(self) -> torch.Tensor:
        """The block's input x_l, (batch, sequence, hidden)."""
        return self.args[0] if self.args else self.kwargs[HIDDEN_STATES]

    def replay(self, block: nn.Module, hidden_states: torch.Tensor) -> torch.Tensor:
        """The output of `block` on other hidden states, the rest (mask, position embeddings ...) as recorded."""
        if self.args:
            return block_output(block(hidden_states, *self.args[1:], **self.kwargs))
        return block_output(block(**{**self.kwargs, HIDDEN_STATES: hidden_states}))


@dataclass(frozen=True)
class BlockRecord:
    """One forward pass as the blocks saw it.

    Attributes:
        hidden_states: x_1 .. x_{L+1}, each (batch, sequence, hidden): the input of each block, then the last block's
            output BEFORE the final norm (the last entry of Hugging Face's `hidden_states` is after it).
        calls: how each of the L blocks was called.
    """

    hidden_states: list[torch.Tensor] = field(default_factory=list)
    calls: list[BlockCall] = field(default_factory=list)


def find_block_stack(model: nn.Module) -> BlockStack:
    """The blocks, final norm and head of a Hugging Face causal language model.

    The decoder is `model.get_decoder()`, the head `model.get_output_embeddings()`; in the decoder, the blocks are the
    `nn.ModuleList` called `layers` or `h`, the final norm is called `norm`, `ln_f` or `final_layer_norm`.

    Raises:
        InputError: the model is not built like this.
    """
    decoder = _call_if_there(model, "get_decoder")
    head = _call_if_there(model, "get_output_embeddings")
    layers = _first_child(decoder, LAYERS_NAMES, nn.ModuleList)
    final_norm = _first_child(decoder, FINAL_NORM_NAMES, nn.Module)
    if decoder is None or head is None or not isinstance(layers, nn.ModuleList) or not layers or final_norm is None:
        found = {"decoder": decoder, "blocks": layers, "final norm": final_norm, "head": head}
        missing = ", ".join(name for name, part in found.items() if part is None) or "blocks (the list is empty)"
        raise InputError(
            f"cannot find the blocks of a {type(model).__name__}; missing: {missing}. Looked for the decoder as "
            f"get_decoder(), in it a ModuleList called {' or '.join(LAYERS_NAMES)} and a norm called "
            f"{' or '.join(FINAL_NORM_NAMES)}, and for the head as get_output_embeddings(); give a decoder-only "
            "Hugging Face model with a language-model head (AutoModelForCausalLM)"
        )
    return BlockStack(decoder=decoder, layers=layers, final_norm=final_norm, head=head)


@contextmanager
def recording(stack: BlockStack) -> Iterator[BlockRecord]:
    """Record the one forward pass that is run inside the `with` block; the record is complete after it.

    Raises:
        InputError: on leaving, if the blocks did not run exactly once each.
    """
    record = BlockRecord()

    def before_block(_block: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        record.calls.append(BlockCall(args, kwargs))
        record.hidden_states.append(record.calls[-1].hidden_states)

    def after_last_block(_block: nn.Module, _args: tuple[Any, ...], output: Any) -> None:
        record.hidden_states.append(block_output(output))

    handles = [block.register_forward_pre_hook(before_block, with_kwargs=True) for block in stack.layers]
    handles.append(stack.layers[-1].register_forward_hook(after_last_block))
    try:
        yield record
    finally:
        for handle in handles:
            handle.remove()
    if len(record.calls) != len(stack.layers) or len(record.hidden_states) != len(stack.layers) + 1:
        raise InputError(
            f"{len(record.calls)} block calls in one forward pass of a model of {len(stack.layers)} blocks; the depth "
            "measures need each block to run once (no shared or skipped blocks)"
        )


def record_block_inputs(
    model: nn.Module, batch: TokenBatch, *, autocast_dtype: torch.dtype | None = None
) -> BlockRecord:
    """Hidden states and block calls of one forward pass, dropout off, without gradients.

    Args:
        model: a causal language model that `find_block_stack` knows.
        batch: (batch, sequence) tokens.
        autocast_dtype: autocast to this; None: the model's own precision.

    Raises:
        InputError: the model's blocks are not found, or do not run once each.
    """
    with evaluation_mode(model), torch.no_grad(), autocast(model, autocast_dtype):
        with recording(find_block_stack(model)) as record:
            batch_logits(model, batch)
        return record


def run_blocks_from(
    stack: BlockStack, hidden_states: torch.Tensor, block_calls: list[BlockCall], indices: Iterable[int]
) -> torch.Tensor:
    """Send `hidden_states` (batch, sequence, hidden) through the blocks with these indices (from 0), in this order.

    Each block gets what it got when it was recorded, other hidden states apart. Mode, autocast and gradients are the
    caller's.
    """
    for index in indices:
        hidden_states = block_calls[index].replay(stack.layers[index], hidden_states)
    return hidden_states


def block_output(output: Any) -> torch.Tensor:
    """The hidden states in what a block returns: a tensor, or a tuple that begins with it."""
    return output[0] if isinstance(output, tuple) else output


def _call_if_there(model: nn.Module, method: str) -> nn.Module | None:
    found = getattr(model, method, None)
    return None if found is None else found()


def _first_child(parent: nn.Module | None, names: Iterable[str], kind: type[nn.Module]) -> nn.Module | None:
    children = (getattr(parent, name, None) for name in names)
    return next((child for child in children if isinstance(child, kind)), None)
