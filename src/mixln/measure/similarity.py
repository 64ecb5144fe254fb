"""How far blocks turn the residual stream: angular distance (Gromov et al. 2024), block influence (Men et al. 2024)."""

from __future__ import annotations

import math
from typing import Literal

import torch

from mixln.measure.estimates import DocumentSums, Estimates
from mixln.measure.observation import Measure, Observation, chunks_of_tokens, sum_by_row

Tokens = Literal["all", "last"]

_CHUNK_TOKENS, _CPU_CHUNK_TOKENS = 1024, 32
"""Tokens of a matrix product: on a CPU what fits into its cache, which is three times as fast as 256."""


class Similarity(Measure):
    """Angular distances of all pairs (start l, block size n), and block influences.

        d(l, n) = arccos(cos(x_l, x_(l+n))) / pi           Gromov et al. 2024 (arXiv 2403.17887), eq. 7; in [0, 1]
        BI(l) = 1 - cos(x_l, x_(l+1))                      ShortGPT: Men et al. 2024 (arXiv 2403.03853), eq. 1

    averaged over tokens; x_l is the input of block l, x_(L+1) the last block's output before the final norm. All pairs
    of a token come from one matrix product of its L + 1 vectors, in float64, in which the angle of two equal float32
    vectors is below 1e-7.

    Args:
        tokens: all counted ones, or the last counted one of each row alone, as Gromov et al. do.
    """

    reads_tokens = True

    def __init__(self, tokens: Tokens = "all") -> None:
        self._tokens: Tokens = tokens
        self._distances = DocumentSums()
        self._influences = DocumentSums()

    def update(self, observation: Observation) -> None:
        """Count a batch."""
        states, batch = observation.hidden_states, observation.batch
        counted = batch.counted_in(states[0])
        if self._tokens == "last":
            counted = last_counted(counted)
        num_rows, num_states = len(counted), len(states)
        distances = torch.zeros(num_rows, num_states, num_states, dtype=torch.float64)
        cosines = torch.zeros(num_rows, num_states - 1, dtype=torch.float64)
        size = _CPU_CHUNK_TOKENS if states[0].device.type == "cpu" else _CHUNK_TOKENS
        for tokens, rows in chunks_of_tokens(states, counted, size):
            gram = _cosines(tokens)
            distances += sum_by_row(gram.clamp(-1, 1).arccos(), rows, num_rows).cpu()
            cosines += sum_by_row(gram.diagonal(1, 1, 2), rows, num_rows).cpu()
        distances /= math.pi
        counts = counted.sum(1)
        self._distances.update(distances, counts, batch.documents)
        self._influences.update(counts.cpu()[:, None] - cosines, counts, batch.documents)

    def angular_distance(self) -> Estimates:
        """(L, L): row n-1, column l-1 holds d(l, n); nan where l + n > L + 1.

        Raises:
            InputError: no token was counted.
        """
        return self._distances.estimate().through(_by_block_size)

    def block_influence(self) -> Estimates:
        """(L,): BI of each block.

        Raises:
            InputError: no token was counted.
        """
        return self._influences.estimate()


def last_counted(counted: torch.Tensor) -> torch.Tensor:
    """The last counted position of each row alone, bool (rows, tokens)."""
    positions = torch.arange(counted.shape[1], device=counted.device)
    last = torch.where(counted, positions, -1).amax(1, keepdim=True)
    return counted & (positions == last)


def _cosines(tokens: torch.Tensor) -> torch.Tensor:
    """(tokens, states, hidden) to (tokens, states, states); a zero vector is orthogonal to all but itself."""
    gram = torch.bmm(tokens, tokens.transpose(1, 2))
    # squares of float32 numbers neither overflow nor vanish in float64
    norms = gram.diagonal(0, 1, 2).sqrt().clamp_min(torch.finfo(gram.dtype).tiny)
    gram = gram / norms[:, :, None] / norms[:, None, :]
    gram.diagonal(0, 1, 2).fill_(1.0)
    return gram


def _by_block_size(pairs: torch.Tensor) -> torch.Tensor:
    num_blocks = len(pairs) - 1
    result = torch.full((num_blocks, num_blocks), math.nan, dtype=torch.float64)
    for n in range(1, num_blocks + 1):
        result[n - 1, : num_blocks + 1 - n] = pairs.diagonal(n)
    return result
