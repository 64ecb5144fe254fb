"""Other ways through the blocks of a model: layers removed, swapped, repeated, or without one of their sublayers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from mixln.measure.sublayers import Sublayer


@dataclass(frozen=True)
class Intervention:
    """Another way through the blocks: from one of the states through blocks in some order.

    What comes before does not change. Blocks take along what the config says of them: the kind of their mask, say.

    Attributes:
        state: index of the state to start from: x_(state+1), 0 being the embedding.
        blocks: indices (from 0) of the blocks that it goes through.
        silent: the sublayer of the first of these blocks whose output is replaced by zeros, if any.
    """

    state: int
    blocks: tuple[int, ...]
    silent: Sublayer | None = None

    def stretch(self, num_blocks: int) -> Stretch:
        """Where this differs from a plain pass through so many blocks."""
        order = (*range(self.state), *self.blocks)
        first = _common_prefix(order, range(num_blocks))
        if self.silent is not None:
            first = min(first, self.state)
        tail = _common_prefix(order[first:][::-1], range(first, num_blocks)[::-1])
        if first + tail == num_blocks:
            # blocks are inserted, or one runs without a sublayer: an existing block must make place
            first, tail = (first - 1, tail) if first and self.silent is None else (first, tail - 1)
        runs = order[first : len(order) - tail]
        # what a block is called with is known when its own place is reached
        first, end = min((first, *runs)), max((num_blocks - tail, *(block + 1 for block in runs)))
        return Stretch(range(first, end), order[first : len(order) - (num_blocks - end)], self.state - first)


class Stretch(NamedTuple):
    """A stretch of the blocks in whose place others run.

    Attributes:
        places: the blocks (from 0) in the model, at least one.
        runs: the blocks that run instead; none other than these.
        silent: the position in `runs` of the block that lacks a sublayer, if the intervention is of that kind.
    """

    places: range
    runs: tuple[int, ...]
    silent: int


def _common_prefix(one: Sequence[int], other: Sequence[int]) -> int:
    pairs = zip(one, other, strict=False)
    return next((number for number, (a, b) in enumerate(pairs) if a != b), min(len(one), len(other)))


Family = Callable[[int], Sequence[Intervention]]
"""From the number of blocks to interventions of one kind, from the first block to the last."""


def removals(length: int = 1) -> Family:
    """Without `length` blocks in a row, by the index of the first of them."""
    return lambda num_blocks: [
        Intervention(first, tuple(range(first + length, num_blocks))) for first in range(num_blocks + 1 - length)
    ]


def swaps(num_blocks: int) -> list[Intervention]:
    """Two neighbours in each other's place, by the index of the first."""
    return [Intervention(first, (first + 1, first, *range(first + 2, num_blocks))) for first in range(num_blocks - 1)]


def repeats(num_blocks: int) -> list[Intervention]:
    """A block twice."""
    return [Intervention(block + 1, tuple(range(block, num_blocks))) for block in range(num_blocks)]


def silences(sublayer: Sublayer) -> Family:
    """A block without one of its sublayers: the sublayer's output F(.) is 0, all else stays."""
    return lambda num_blocks: [
        Intervention(block, tuple(range(block, num_blocks)), sublayer) for block in range(num_blocks)
    ]
