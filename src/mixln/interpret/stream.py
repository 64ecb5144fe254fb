"""What each component of a model adds to its residual stream.

    x_(L+1) = x_1 + sum over l of (a_l + m_l)

x_1 is the embedding (with positions), a_l and m_l what attention and feed-forward of block l write: their outputs
after all modules between them and the stream. No list of model names is needed: the modules that write are found by
what runs, and the sum is checked on every pass.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from mixln.errors import InputError
from mixln.measure.calls import block_output, watched
from mixln.measure.forward import call_model
from mixln.measure.norm_scales import is_norm
from mixln.measure.recording import BlockRecord, recording
from mixln.measure.sublayers import SUBLAYERS, Sublayer, SublayerFinder
from mixln.measure.sums import at_least_float32, where_float64_is
from mixln.models.anatomy import BlockStack, find_block_stack
from mixln.modes import evaluation_mode

Part = Literal["embedding", "attention", "feed_forward"]


@dataclass(frozen=True)
class Component:
    """One of the terms that the stream is the sum of.

    Attributes:
        part: what it is.
        layer: the number of its block, from 1; None for the embedding.
    """

    part: Part
    layer: int | None = None

    def __str__(self) -> str:
        return self.part if self.layer is None else f"{self.part} {self.layer}"


@dataclass(frozen=True)
class StreamRecord:
    """One forward pass.

    Attributes:
        blocks: what the blocks saw; `blocks.hidden_states[-1]` is the stream before the final norm.
        written: for each block, what each sublayer added to the stream, (rows, tokens, hidden) each.
    """

    blocks: BlockRecord
    written: list[dict[Sublayer, Tensor]]

    def components(self) -> dict[Component, Tensor]:
        """The terms of the sum, the embedding first, then attention and feed-forward block by block."""
        parts = {Component("embedding"): self.blocks.hidden_states[0]}
        for layer, sublayers in enumerate(self.written, start=1):
            parts |= {Component(name, layer): sublayers[name] for name in SUBLAYERS}
        return parts


@dataclass(frozen=True)
class Stream:
    """The blocks of a model, and the modules whose outputs they add to the stream.

    Attributes:
        stack: the blocks.
        writers: for each block, the last linear layer of each sublayer (of a mixture of experts, the whole of it), or
            the norm after it (Sandwich-LN, OLMo 2), whose output is added.
    """

    stack: BlockStack
    writers: list[dict[Sublayer, nn.Module]]

    @property
    def model(self) -> nn.Module:
        """The model."""
        return self.stack.model

    @contextmanager
    def recording(self) -> Iterator[StreamRecord]:
        """Record the one forward pass that is run inside the `with` block; the record is complete after it.

        Raises:
            InputError: on leaving, if the blocks do not feed each other.
        """
        written: list[dict[Sublayer, Tensor]] = [{} for _ in self.writers]
        places: list[tuple[tuple[dict[Sublayer, Tensor], Sublayer], nn.Module]] = [
            ((written[i], name), writer) for i, own in enumerate(self.writers) for name, writer in own.items()
        ]

        def keep(place: tuple[dict[Sublayer, Tensor], Sublayer], _args: Any, output: Any) -> None:
            place[0][place[1]] = block_output(output)

        with watched(places, keep), recording(self.stack) as blocks:
            yield StreamRecord(blocks, written)

    def check_sum(self, record: StreamRecord) -> None:
        """Make sure that each block's output is its input plus what its sublayers write, up to rounding.

        Raises:
            InputError: it is not; says where, and what that is usually due to.
        """
        states = record.blocks.hidden_states
        for layer, written in enumerate(record.written, start=1):
            before, after = at_least_float32(states[layer - 1]), at_least_float32(states[layer])
            added = [at_least_float32(output).to(after.device) for output in written.values()]
            rest = after - before.to(after.device) - sum(added)
            size = before.norm(dim=-1).to(after.device) + after.norm(dim=-1)
            share = (rest.norm(dim=-1) / size.clamp_min(1e-30)).max().item()
            if not share <= rounding(states[layer].dtype):
                raise InputError(
                    f"the stream of {described(self.model)} is not a plain sum: the output of block {layer} of "
                    f"{self.stack.name} differs from its input plus the outputs of its attention and feed-forward by "
                    f"{share:.2g} of their norm. Something rescales the stream on its way, as the norms on the "
                    "residual path of Post-LN do, so the share of a component in the final state is not defined. "
                    "Components can be told apart in Pre-LN models (pre, lns ...) and in models without norms (none)"
                )


def find_stream(model: nn.Module, arguments: Mapping[str, Any], stack: str | None = None) -> Stream:
    """Find the blocks of a model and the modules that write to its stream, in one forward pass.

    Args:
        model: any model whose blocks and sublayers are found (see `mixln.models.anatomy`, `mixln.measure.sublayers`).
        arguments: of the model, for the pass; one row will do.
        stack: the name of the list of blocks, where it is ambiguous.

    Raises:
        InputError: blocks or sublayers are not found, or blocks do not feed each other.
    """
    blocks, finder = find_block_stack(model, stack), SublayerFinder()
    calls: dict[nn.Module, tuple[Any, Any]] = {}
    inside = [(module, module) for module in blocks.layers.modules() if module is not blocks.layers]

    def note(module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        calls[module] = (args[0] if args else None, output)

    with watched(inside, note), evaluation_mode(model), torch.no_grad(), finder.watch(blocks), recording(blocks):
        call_model(model, arguments)

    def writer(index: int, sublayer: Sublayer) -> nn.Module:
        """The branch, or the norm that is given its very output."""
        branch = finder.branch(index, sublayer)
        output = block_output(calls[branch][1])
        norms = filter(is_norm, blocks.layers[index].modules())
        return next((norm for norm in norms if calls.get(norm, (None,))[0] is output), branch)

    return Stream(blocks, [{name: writer(index, name) for name in SUBLAYERS} for index in range(len(blocks.layers))])


def rounding(dtype: torch.dtype) -> float:
    """The relative difference that rounding in a precision may make."""
    return min(0.05, 64 * torch.finfo(dtype).eps)


def precise(values: Tensor) -> Tensor:
    """The values in float64, on the CPU if their device has none."""
    return where_float64_is(values).double()


def described(model: nn.Module) -> str:
    """The model's class, and its placement if it has one, for messages."""
    placement = getattr(getattr(model, "config", None), "placement", None)
    return f"this {type(model).__name__}" + (f" (placement {placement})" if isinstance(placement, str) else "")
