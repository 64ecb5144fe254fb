"""The two sublayers of each block: where the output of attention and of the feed-forward is."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import Any, Literal

import torch
from torch import Tensor, nn

from mixln.errors import InputError
from mixln.measure.calls import block_output, watched
from mixln.measure.estimates import DocumentSums, Estimates
from mixln.measure.observation import Measure, Observation
from mixln.measure.sums import at_least_float32
from mixln.models.anatomy import BlockAnatomy, BlockStack, block_anatomy
from mixln.models.transformers_internals import Conv1D

Sublayer = Literal["attention", "feed_forward"]
SUBLAYERS: tuple[Sublayer, ...] = ("attention", "feed_forward")


class SublayerFinder:
    """Finds the branches F(.) of each block, what its sublayers add to the stream, from one forward pass, by what runs.

    F of attention is the output of the last linear layer that runs inside the block's attention module; F of the
    feed-forward that of the last linear layer of the child that is called one (or, if none is, of the block outside of
    attention), or, in a mixture of experts, that of the whole feed-forward module. So biases count to F, norms behind
    it do not. Of several feed-forwards side by side, none is found.
    """

    def __init__(self) -> None:
        self._branches: list[dict[Sublayer, nn.Module]] | None = None

    @contextmanager
    def watch(self, stack: BlockStack) -> Iterator[None]:
        """Find them in the forward pass inside the `with` block; only the first time costs anything."""
        if self._branches is not None:
            yield
            return
        order: list[list[tuple[str, nn.Module]]] = [[] for _ in stack.layers]
        inside = [
            ((index, name, module), module)
            for index, block in enumerate(stack.layers)
            for name, module in block.named_modules()
            if name
        ]
        with watched(inside, lambda key, _args, _output: order[key[0]].append(key[1:])):
            yield
        self._branches = [_branches(ran, block_anatomy(block)) for ran, block in zip(order, stack.layers, strict=True)]

    def branch(self, block: int, sublayer: Sublayer) -> nn.Module:
        """The module whose output is F of a sublayer, in a block (from 0).

        Raises:
            InputError: the block has no such sublayer, or it was not found.
        """
        assert self._branches is not None
        found = self._branches[block].get(sublayer)
        if found is None:
            raise InputError(
                f"the {sublayer.replace('_', '-')} of block {block + 1} was not found by the names of its "
                "modules, so it cannot be measured alone. Leave the measures of sublayers out"
            )
        return found

    def is_complete(self) -> bool:
        """Whether every block has both."""
        return self._branches is not None and all(len(found) == len(SUBLAYERS) for found in self._branches)


def _branches(ran: Sequence[tuple[str, nn.Module]], parts: BlockAnatomy) -> dict[Sublayer, nn.Module]:
    """From the modules of a block in the order in which they ended to its branches."""
    attention = [module for name, module in ran if _is_linear(module) and _child(name) in parts.attention]
    others = [(name, module) for name, module in ran if _child(name) not in parts.attention and name not in parts.norms]
    found: dict[Sublayer, nn.Module] = {}
    if attention:
        found["attention"] = attention[-1]
    # where a child is called a feed-forward, projections (of per-layer inputs) are no part of it
    named = {
        _child(name)
        for name, module in others
        if _child(name) in parts.feed_forward and (_is_linear(module) or "experts" in name.split("."))
    }
    if len(named) > 1:
        return found  # several feed-forwards side by side: the output of none is the sublayer's
    others = [(name, module) for name, module in others if not named or _child(name) in named]
    experts = {_child(name) for name, _ in others if "experts" in name.split(".")}
    if experts:
        whole = [module for name, module in others if name in experts]
        if whole:
            found["feed_forward"] = whole[-1]
    elif linear := [module for _, module in others if _is_linear(module)]:
        found["feed_forward"] = linear[-1]
    return found


def _child(name: str) -> str:
    return name.split(".")[0]


def _is_linear(module: nn.Module) -> bool:
    return isinstance(module, (nn.Linear, Conv1D))


def silenced(branch: nn.Module) -> AbstractContextManager[None]:
    """A branch gives zeros inside the `with` block."""
    return replaced_output(branch, torch.zeros_like)


@contextmanager
def replaced_output(module: nn.Module, change: Callable[[Tensor], Tensor]) -> Iterator[None]:
    """What a module returns is changed inside the `with` block; of a tuple, its first."""

    def hook(_module: nn.Module, _args: Any, output: Any) -> Any:
        changed = change(block_output(output))
        return (changed, *output[1:]) if isinstance(output, tuple) else changed

    with module.register_forward_hook(hook):
        yield


class SublayerShares(Measure):
    """How much of the stream each sublayer adds: || F ||_2 / || x_l ||_2, x_l the block's input, averaged over tokens.

    A layer whose both shares are small hardly changes what it is given. Behind a norm (N_branch, N_out) what reaches
    the stream is scaled once more; the share is that of F itself.

    Args:
        sublayers: if they are found already.
    """

    reads_tokens = True
    replays_blocks = True

    def __init__(self, sublayers: SublayerFinder | None = None) -> None:
        self._finder = sublayers or SublayerFinder()
        self._sums = DocumentSums()

    def watch(self, stack: BlockStack) -> AbstractContextManager[object]:
        """Find the sublayers."""
        return self._finder.watch(stack)

    def update(self, observation: Observation) -> None:
        """Count a batch: its blocks run once more, each from its recorded input."""
        stack, record = observation.stack, observation.record
        counted = observation.batch.counted_in(record.hidden_states[0]).cpu()
        shares: list[torch.Tensor] = []
        for index, block in enumerate(stack.layers):
            norms: dict[Sublayer, torch.Tensor] = {}

            def keep(
                sublayer: Sublayer, _args: object, output: object, norms: dict[Sublayer, torch.Tensor] = norms
            ) -> None:
                norms[sublayer] = at_least_float32(block_output(output)).norm(dim=-1).cpu()

            x = record.hidden_states[index]
            with watched([(sublayer, self._finder.branch(index, sublayer)) for sublayer in SUBLAYERS], keep):
                record.calls[index].replay(block, x)
            stream = at_least_float32(x).norm(dim=-1).cpu()
            ratios = [norms[sublayer].reshape(stream.shape) / stream for sublayer in SUBLAYERS]
            shares.append(torch.where(counted[..., None], torch.stack(ratios, -1), 0.0).sum(1, dtype=torch.float64))
        self._sums.update(torch.stack(shares, dim=1), counted.sum(1), observation.batch.documents)

    def share(self, sublayer: Sublayer) -> Estimates:
        """(L,): the share of each block's sublayer.

        Raises:
            InputError: no token was counted.
        """
        return self._sums.estimate().column(SUBLAYERS.index(sublayer))
