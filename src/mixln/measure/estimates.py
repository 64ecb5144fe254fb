"""Means over tokens with confidence intervals over documents, from one pass."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch

from mixln.confidence import student_t_two_sided
from mixln.measure.sums import no_tokens_error

CONFIDENCE = 0.95


@dataclass(frozen=True)
class Estimates:
    """Numbers with their confidence intervals, all float64 tensors of one shape on the CPU.

    Attributes:
        value: the estimates.
        low: lower ends of the intervals; nan where there is only one document.
        high: upper ends.
        num_documents: how many documents the intervals come from.
    """

    value: torch.Tensor
    low: torch.Tensor
    high: torch.Tensor
    num_documents: int

    def column(self, index: int) -> Estimates:
        """The estimates at an index of the last dimension."""
        return self.through(lambda part: part[..., index])

    def row(self, index: int) -> Estimates:
        """The estimates at an index of the first dimension."""
        return self.through(lambda part: part[index])

    def complement(self) -> Estimates:
        """1 - the estimates, of shares."""
        return Estimates(1 - self.value, 1 - self.high, 1 - self.low, self.num_documents)

    def through(self, rising: Callable[[torch.Tensor], torch.Tensor]) -> Estimates:
        """A function that never falls, of the estimates and of the ends of their intervals."""
        return Estimates(rising(self.value), rising(self.low), rising(self.high), self.num_documents)


class DocumentSums:
    """Sums over the tokens of each document, from which means over all tokens and their intervals come.

    The mean is R = sum_i s_i / sum_i n_i, s_i the sum and n_i the number of tokens of document i. Its interval takes
    documents, not tokens, as the independent draws (the tokens of one document resemble each other):

        SE^2 = D / (D - 1) * sum_i (s_i - R n_i)^2 / (sum_i n_i)^2        interval: R -+ t(0.975, D - 1) SE

    for D documents (the linearised variance of a ratio: Cochran, Sampling Techniques, 3rd ed., eq. 6.10-6.13). What
    makes no difference leaves no trace: how documents are cut into rows, rows into batches, or their order.

    Raises:
        InputError: from `estimate()`, if no token was counted.
    """

    def __init__(self) -> None:
        self._sums: dict[int, torch.Tensor] = {}
        self._counts: dict[int, float] = {}

    def update(self, sums: torch.Tensor, counts: torch.Tensor, documents: torch.Tensor) -> None:
        """Count some rows.

        Args:
            sums: (rows, ...), the sum over each row's tokens.
            counts: (rows,), the number of them; a row without tokens does not count.
            documents: (rows,), the number of the document that each row is of.
        """
        sums, counts = sums.detach().cpu().double(), counts.cpu().double()
        for row, document in enumerate(documents.tolist()):
            count = counts[row].item()
            if count == 0:
                continue
            self._sums[document] = self._sums.get(document, 0) + sums[row]
            self._counts[document] = self._counts.get(document, 0.0) + count

    def update_tokens(self, values: torch.Tensor, documents: torch.Tensor) -> None:
        """Count single tokens.

        Args:
            values: (tokens,).
            documents: (tokens,), the number of the document that each is of.
        """
        numbers, places = documents.unique(return_inverse=True)
        sums = torch.zeros(len(numbers), dtype=torch.float64).index_add_(0, places, values.double())
        self.update(sums, places.bincount(minlength=len(numbers)), numbers)

    @property
    def num_tokens(self) -> float:
        """Tokens so far."""
        return math.fsum(self._counts.values())

    def stacked(self) -> tuple[torch.Tensor, torch.Tensor]:
        """s_i, (documents, ...), and n_i, (documents,), in the order of the documents' numbers.

        Raises:
            InputError: no token was counted.
        """
        if not self._counts:
            raise no_tokens_error()
        documents = sorted(self._counts)
        sums = torch.stack([self._sums[document] for document in documents])
        return sums, torch.tensor([self._counts[document] for document in documents], dtype=torch.float64)

    def estimate(self) -> Estimates:
        """The means over all tokens, with intervals."""
        return ratio_estimates(*self.stacked())


def ratio_estimates(sums: torch.Tensor, counts: torch.Tensor) -> Estimates:
    """R = sum_i s_i / sum_i n_i with the interval that `DocumentSums` describes.

    Args:
        sums: (documents, ...), float64.
        counts: (documents,), float64.
    """
    total = counts.sum()
    value = sums.sum(0) / total
    weights = counts.reshape(-1, *[1] * value.ndim)
    residuals = sums - value * weights
    return with_interval(value, residuals / total)


def with_interval(value: torch.Tensor, influences: torch.Tensor) -> Estimates:
    """An interval around a smooth function of documents' sums, from each document's influence on it.

        SE^2 = D / (D - 1) * sum_i influence_i^2

    Args:
        value: of the function, any shape.
        influences: (documents, ...): the derivative of the function along document i's share, which sum to 0.
    """
    documents = len(influences)
    if documents < 2:
        return without_interval(value, documents)
    error = (influences.square().sum(0) * documents / (documents - 1)).sqrt()
    reach = student_t_two_sided(CONFIDENCE, documents - 1) * error
    return Estimates(value, value - reach, value + reach, documents)


def without_interval(value: torch.Tensor, documents: int = 1) -> Estimates:
    """Numbers without known intervals."""
    unknown = torch.full_like(value, math.nan)
    return Estimates(value, unknown, unknown, documents)
