"""What becomes of a model whose layers are removed, swapped or repeated."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import torch

from mixln.depth.batches import ModelBatch
from mixln.depth.estimates import DocumentSums, Estimates, ratio_estimates
from mixln.depth.observation import Measure, Observation
from mixln.depth.performance import BatchPerformance, Performance
from mixln.depth.stack import BlockStack
from mixln.depth.sublayers import Sublayer, SublayerFinder, silenced


@dataclass(frozen=True)
class Intervention:
    """Another way through the blocks: from one of the recorded states through blocks in some order.

    What comes before does not change, so it is not computed again.

    Attributes:
        state: index of the state to start from: x_(state+1), 0 being the embedding.
        blocks: indices (from 0) of the blocks that it goes through.
        silent: the sublayer of the first of these blocks whose output is replaced by zeros, if any.
    """

    state: int
    blocks: tuple[int, ...]
    silent: Sublayer | None = None


def remove_run(first: int, length: int, num_blocks: int) -> Intervention:
    """Without the `length` blocks from index `first` (from 0) on."""
    return Intervention(first, tuple(range(first + length, num_blocks)))


def swap(first: int, num_blocks: int) -> Intervention:
    """Block `first` (from 0) and the next in each other's place."""
    return Intervention(first, (first + 1, first, *range(first + 2, num_blocks)))


def repeat(block: int, num_blocks: int) -> Intervention:
    """Block `block` (from 0) twice."""
    return Intervention(block + 1, tuple(range(block, num_blocks)))


def silence(block: int, sublayer: Sublayer, num_blocks: int) -> Intervention:
    """A sublayer of block `block` (from 0) alone removed: its output F(.) is 0, what stands around it stays."""
    return Intervention(block, tuple(range(block, num_blocks)), sublayer)


def removals(length: int = 1) -> Callable[[int], list[Intervention]]:
    """Every run of `length` blocks, by the index of its first."""
    return lambda num_blocks: [remove_run(first, length, num_blocks) for first in range(num_blocks + 1 - length)]


def swaps(num_blocks: int) -> list[Intervention]:
    """Every pair of neighbours, by the index of its first."""
    return [swap(first, num_blocks) for first in range(num_blocks - 1)]


def repeats(num_blocks: int) -> list[Intervention]:
    """Every block."""
    return [repeat(block, num_blocks) for block in range(num_blocks)]


def silences(sublayer: Sublayer) -> Callable[[int], list[Intervention]]:
    """Every block's sublayer of a kind."""
    return lambda num_blocks: [silence(block, sublayer, num_blocks) for block in range(num_blocks)]


class PerformanceDrop(Measure):
    """dP = P(changed model) - P(whole model), for a family of interventions; positive means harm.

    Performance drop of Mix-LN (Li, Yin, Liu 2024, arXiv 2412.13795), section 2, with any `Performance`. All
    interventions of a batch share its forward pass: removing each of L blocks costs (L - 1) / 2 forward passes of the
    blocks, and what stands before and behind them L times.

    Args:
        interventions: from the number of blocks to the family.
        performance: what is measured; kept under this name.
        sublayers: if they are found already.
    """

    def __init__(
        self,
        interventions: Callable[[int], Iterable[Intervention]],
        performance: Performance,
        sublayers: SublayerFinder | None = None,
    ) -> None:
        self._family = interventions
        self.performance = performance
        self._drops = DocumentSums()
        self._whole = DocumentSums()
        self._sublayers = sublayers or SublayerFinder()
        self._judged: BatchPerformance | None = None

    def watch(self, stack: BlockStack) -> AbstractContextManager[object]:
        """Find the sublayers, if an intervention is about one."""
        needed = any(intervention.silent is not None for intervention in self._family(len(stack.layers)))
        return self._sublayers.watch(stack) if needed else nullcontext()

    def see_output(self, output: object, batch: ModelBatch) -> None:
        """Judge the whole model."""
        self._judged = self.performance.on(output, batch)

    def update(self, observation: Observation) -> None:
        """Count a batch."""
        batch = observation.batch
        performance = self._judged
        assert performance is not None
        # not in a loop, whose variable would hold one output while the next is computed
        drops = list(map(performance.harm, self._outputs(observation)))
        self._drops.update(torch.stack(drops, dim=1), performance.counts, batch.documents)
        self._whole.update(performance.whole, performance.counts, batch.documents)

    def _outputs(self, observation: Observation) -> Iterator[object]:
        for intervention in self._family(len(observation.stack.layers)):
            context: AbstractContextManager[object] = nullcontext()
            if intervention.silent is not None:
                branch = self._sublayers.branch(intervention.blocks[0], intervention.silent)
                context = silenced(branch)
            with context:
                yield observation.run_again(intervention.state, intervention.blocks)

    def drop(self) -> Estimates:
        """One number for each intervention, in the order of the family.

        Raises:
            InputError: nothing was counted.
        """
        return self._drops.estimate()

    def changed(self) -> Estimates:
        """P of the changed models, one number for each intervention: P of the whole model + dP.

        Raises:
            InputError: nothing was counted.
        """
        (drops, counts), (whole, _) = self._drops.stacked(), self._whole.stacked()
        return ratio_estimates(drops + whole[:, None], counts)

    def whole(self) -> Estimates:
        """P of the whole model, shape ().

        Raises:
            InputError: nothing was counted.
        """
        return self._whole.estimate()

    def whole_total(self) -> tuple[float, int]:
        """P of the whole model as a sum, and what it is divided by: tokens, or rows.

        Raises:
            InputError: nothing was counted.
        """
        sums, counts = self._whole.stacked()
        return sums.sum().item(), int(counts.sum())
