"""How the residual stream grows with depth (Curse of Depth: Sun et al. 2025, arXiv 2502.05795)."""

from __future__ import annotations

import torch

from mixln.measure.estimates import DocumentSums, Estimates
from mixln.measure.observation import Measure, Observation
from mixln.measure.sums import at_least_float32


class StreamGrowth(Measure):
    """Variance, root mean square and norm of x_1 .. x_(L+1), each averaged over tokens.

        variance(l) = mean over tokens of mean_c (x_c - mean_c x)^2      Curse of Depth, section 3
        rms(l) = mean over tokens of sqrt(mean_c x_c^2)
        norm(l) = mean over tokens of || x ||_2

    The variance is the population variance: division by the number of channels, not one less.
    """

    reads_tokens = True

    def __init__(self) -> None:
        self._sums = DocumentSums()

    def update(self, observation: Observation) -> None:
        """Count a batch."""
        counted = observation.batch.counted_in(observation.hidden_states[0])
        values = [_values(state, counted.to(state.device)).cpu() for state in observation.hidden_states]
        self._sums.update(torch.stack(values, dim=1), counted.sum(1), observation.batch.documents)

    def variance(self) -> Estimates:
        """(L + 1,), in squared units of the hidden states. Raises InputError: no token was counted."""
        return self._sums.estimate().column(0)

    def rms(self) -> Estimates:
        """(L + 1,), in units of the hidden states. Raises InputError: no token was counted."""
        return self._sums.estimate().column(1)

    def norm(self) -> Estimates:
        """(L + 1,), in units of the hidden states. Raises InputError: no token was counted."""
        return self._sums.estimate().column(2)


def _values(state: torch.Tensor, counted: torch.Tensor) -> torch.Tensor:
    """(rows, 3): sums over each row's tokens."""
    x = at_least_float32(state)
    square = x.square().mean(-1)
    variance = (x - x.mean(-1, keepdim=True)).square().mean(-1)
    values = torch.stack([variance, square.sqrt(), (square * x.shape[-1]).sqrt()], dim=-1)
    # float64 sums on the CPU: not every device has them
    return torch.where(counted[..., None], values, 0.0).cpu().sum(1, dtype=torch.float64)
