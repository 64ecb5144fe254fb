"""The losses that a language model must beat: those of token frequencies alone, and of pairs of neighbouring tokens."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from mixln.errors import InputError
from mixln.models.encoding import IGNORED_TARGET

Integers = np.ndarray[Any, np.dtype[np.int64]]
Floats = np.ndarray[Any, np.dtype[np.float64]]


@dataclass(frozen=True)
class Predictions:
    """Tokens that are to be predicted, each with the token before it. All arrays are of shape (predictions,).

    Attributes:
        contexts: the token before.
        targets: the token to predict.
        documents: the number of the document that the prediction is in.
    """

    contexts: Integers
    targets: Integers
    documents: Integers

    @classmethod
    def of(cls, input_ids: torch.Tensor, targets: torch.Tensor, documents: torch.Tensor) -> Predictions:
        """The predictions of some rows, in their order.

        Args:
            input_ids: (rows, tokens).
            targets: (rows, tokens), the token that follows, or -100 where nothing is predicted.
            documents: (rows, tokens), or (rows, 1) where a row is of one document.
        """
        predicted = targets != IGNORED_TARGET
        return cls(
            *(part[predicted].cpu().numpy() for part in (input_ids, targets, documents.expand_as(targets))),
        )

    @classmethod
    def joined(cls, several: Iterable[Predictions]) -> Predictions:
        """Several as one, in their order."""
        parts = [(one.contexts, one.targets, one.documents) for one in several]
        return cls(*map(np.concatenate, zip(*parts, strict=True)))

    def __len__(self) -> int:
        """Number of predictions."""
        return len(self.targets)

    def where(self, chosen: np.ndarray[Any, np.dtype[np.bool_]]) -> Predictions:
        """Those for which a bool of shape (predictions,) is true."""
        return Predictions(self.contexts[chosen], self.targets[chosen], self.documents[chosen])


class TokenCounts:
    """How often each token, and each pair of neighbouring tokens, was to be predicted; and what they predict.

    Both orders are smoothed by the rule of Witten and Bell (1991; method C), interpolated as in Chen and Goodman
    (1999), which has no parameter to fit. With c(v, w) the number of times that token w followed v, c(w) the number
    of times that w was predicted, T(.) the number of different tokens that were predicted (after v), and V tokens in
    the vocabulary:

        p(w)     = (c(w)    + T    / V)       / (sum_w c(w)    + T)
        p(w | v) = (c(v, w) + T(v) * p(w))    / (sum_w c(v, w) + T(v))

    A v that was never seen predicts p(w). Counts are exact; pairs are kept as sorted arrays of those that occur, in 16
    bytes each.

    Args:
        vocabulary: V, more than every token's id.
    """

    def __init__(self, vocabulary: int) -> None:
        self._vocabulary = vocabulary
        self._tokens: Integers = np.zeros(vocabulary, np.int64)
        self._pairs: Integers = np.empty(0, np.int64)
        self._pair_counts: Integers = np.empty(0, np.int64)

    @property
    def total(self) -> int:
        """Number of counted predictions."""
        return int(self._tokens.sum())

    def add(self, predictions: Predictions) -> None:
        """Count predictions."""
        self._tokens += np.bincount(predictions.targets, minlength=self._vocabulary)
        pairs, counts = np.unique(self._keys(predictions), return_counts=True)
        both, counts = np.concatenate([self._pairs, pairs]), np.concatenate([self._pair_counts, counts])
        order = np.argsort(both, kind="stable")  # which merges sorted runs
        both, counts = both[order], counts[order]
        first = np.flatnonzero(np.diff(both, prepend=-1))
        self._pairs, self._pair_counts = both[first], np.add.reduceat(counts, first) if len(first) else counts

    def token_losses(self, predictions: Predictions) -> Floats:
        """-log p(w) of each prediction, in nats: (predictions,)."""
        return -np.log(self._token_probabilities()[predictions.targets])

    def pair_losses(self, predictions: Predictions) -> Floats:
        """-log p(w | v) of each prediction, in nats: (predictions,)."""
        firsts = self._pairs // self._vocabulary
        totals = np.bincount(firsts, self._pair_counts, minlength=self._vocabulary)
        different = np.bincount(firsts, minlength=self._vocabulary)
        below = self._token_probabilities()[predictions.targets]
        seen, followers = totals[predictions.contexts], different[predictions.contexts]
        with np.errstate(invalid="ignore"):  # 0 / 0 where the token before was never seen
            smoothed = (self._counts_of_pairs(predictions) + followers * below) / (seen + followers)
        return -np.log(np.where(seen > 0, smoothed, below))

    def _token_probabilities(self) -> Floats:
        different = np.count_nonzero(self._tokens)
        if not different:
            return np.full(self._vocabulary, 1 / self._vocabulary)
        return (self._tokens + different / self._vocabulary) / (self.total + different)

    def _counts_of_pairs(self, predictions: Predictions) -> Integers:
        if not len(self._pairs):
            return np.zeros(len(predictions), np.int64)
        keys = self._keys(predictions)
        places = np.minimum(np.searchsorted(self._pairs, keys), len(self._pairs) - 1)
        return np.where(self._pairs[places] == keys, self._pair_counts[places], 0)

    def _keys(self, predictions: Predictions) -> Integers:
        return predictions.contexts.astype(np.int64) * self._vocabulary + predictions.targets


def own_frequency_losses(predictions: Predictions) -> Floats:
    """-log of the share that each target has among all targets of the same predictions, in nats: (predictions,).

    Their mean is the entropy of the targets' own frequencies. No predictor that ignores what stands before a token can
    have a lower mean loss on these targets (Gibbs' inequality), whatever it was trained on.

    Raises:
        InputError: there is no prediction.
    """
    if not len(predictions):
        raise InputError("there is no token to predict, so there are no frequencies to compare with")
    _, places, counts = np.unique(predictions.targets, return_inverse=True, return_counts=True)
    return -np.log(counts[places] / len(predictions))


def cross_fitted_pair_losses(predictions: Predictions, vocabulary: int, parts: int = 10) -> Floats | None:
    """The losses of pairs of tokens, each document's from the counts of other documents: (predictions,).

    Documents are dealt out to `parts` parts in the order of their numbers; the losses of a part come from the counts of
    all others. None with one document alone.
    """
    _, numbers = np.unique(predictions.documents, return_inverse=True)
    parts = min(parts, int(numbers.max()) + 1)
    if parts < 2:
        return None
    losses = np.empty(len(predictions))
    for part in range(parts):
        own = numbers % parts == part
        counts = TokenCounts(vocabulary)
        counts.add(predictions.where(~own))
        losses[own] = counts.pair_losses(predictions.where(own))
    return losses
