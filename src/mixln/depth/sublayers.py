"""The two sublayers of each block: where the output of attention and of the feed-forward is."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from typing import Any, Literal

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from mixln.depth.estimates import DocumentSums, Estimates
from mixln.depth.observation import Measure, Observation
from mixln.depth.stack import BlockStack, block_output
from mixln.depth.sums import at_least_float32
from mixln.errors import InputError

Sublayer = Literal["attention", "feed_forward"]
SUBLAYERS: tuple[Sublayer, ...] = ("attention", "feed_forward")

_ATTENTION = re.compile(r"attn|attention|mixer", re.IGNORECASE)
_NORM = re.compile(r"norm|^ln_|_ln$", re.IGNORECASE)


class SublayerFinder:
    """Finds the branches F(.) of each block, what its sublayers add to the stream, from one forward pass, by what runs.

    F of attention is the output of the last linear layer that runs inside the block's attention module; F of the
    feed-forward that of the last linear layer of the block outside of attention, or, in a mixture of experts, that of
    the whole feed-forward module. So biases count to F, norms behind it do not.
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
        with ExitStack() as hooks:
            for index, block in enumerate(stack.layers):
                for name, module in block.named_modules():
                    if name:
                        hooks.enter_context(module.register_forward_hook(_noting(order[index], name)))
            yield
        self._branches = [_branches(ran) for ran in order]

    def branch(self, block: int, sublayer: Sublayer) -> nn.Module:
        """The module whose output is F of a sublayer, in a block (from 0).

        Raises:
            InputError: the block has no such sublayer, or none that can be told.
        """
        assert self._branches is not None
        found = self._branches[block].get(sublayer)
        if found is None:
            raise InputError(
                f"the {sublayer.replace('_', '-')} of block {block + 1} cannot be told from its modules' names, so it "
                "cannot be measured alone. Leave the measures of sublayers out"
            )
        return found

    def is_complete(self) -> bool:
        """Whether every block has both."""
        return self._branches is not None and all(len(found) == len(SUBLAYERS) for found in self._branches)


def _noting(order: list[tuple[str, nn.Module]], name: str) -> Callable[..., None]:
    def note(module: nn.Module, _args: Any, _output: Any) -> None:
        order.append((name, module))

    return note


def _branches(ran: Sequence[tuple[str, nn.Module]]) -> dict[Sublayer, nn.Module]:
    """From the modules of a block in the order in which they ended to its branches."""
    attention = [module for name, module in ran if _is_linear(module) and _ATTENTION.search(name.split(".")[0])]
    others = [
        (name, module)
        for name, module in ran
        if not _ATTENTION.search(name.split(".")[0]) and not _NORM.search(name.split(".")[-1])
    ]
    found: dict[Sublayer, nn.Module] = {}
    if attention:
        found["attention"] = attention[-1]
    experts = {name.split(".")[0] for name, _ in others if "experts" in name.split(".")}
    if experts:
        whole = [module for name, module in others if name in experts]
        if whole:
            found["feed_forward"] = whole[-1]
    elif linear := [module for _, module in others if _is_linear(module)]:
        found["feed_forward"] = linear[-1]
    return found


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
            x = record.hidden_states[index]
            with ExitStack() as hooks:
                for sublayer in SUBLAYERS:
                    branch = self._finder.branch(index, sublayer)
                    hooks.enter_context(branch.register_forward_hook(_keeping_norm(norms, sublayer)))
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


def _keeping_norm(norms: dict[Sublayer, torch.Tensor], sublayer: Sublayer) -> Callable[..., None]:
    def keep(_module: nn.Module, _args: Any, output: Any) -> None:
        norms[sublayer] = at_least_float32(block_output(output)).norm(dim=-1).cpu()

    return keep
