from __future__ import annotations

import math
from collections import Counter
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch

from mixln.data import PackedDataset, TokenStore, TokenStoreWriter
from mixln.errors import InputError
from mixln.measure.frequencies import (
    Predictions,
    TokenCounts,
    cross_fitted_pair_losses,
    own_frequency_losses,
)

Pair = tuple[int, int]


def literal_losses(counted: list[Pair], asked: list[Pair], vocabulary: int) -> tuple[list[float], list[float]]:
    """Witten-Bell, written down from its definition with dictionaries."""
    tokens = Counter(target for _, target in counted)
    pairs = Counter(counted)

    def token(w: int) -> float:
        if not tokens:
            return 1 / vocabulary
        return (tokens[w] + len(tokens) / vocabulary) / (sum(tokens.values()) + len(tokens))

    def pair(v: int, w: int) -> float:
        after = {pair: count for pair, count in pairs.items() if pair[0] == v}
        if not after:
            return token(w)
        return (pairs[v, w] + len(after) * token(w)) / (sum(after.values()) + len(after))

    return [-math.log(token(w)) for _, w in asked], [-math.log(pair(v, w)) for v, w in asked]


def predictions(pairs: list[Pair], documents: list[int] | None = None) -> Predictions:
    contexts, targets = np.array(pairs, dtype=np.int64).reshape(-1, 2).T
    return Predictions(contexts, targets, np.array(documents or [0] * len(pairs)))


def drawn(seed: int, count: int, vocabulary: int) -> list[Pair]:
    draw = np.random.default_rng(seed)
    return [(int(v), int(w)) for v, w in (draw.random((count, 2)) ** 3 * vocabulary)]


@pytest.mark.parametrize(("count", "vocabulary"), [(0, 7), (1, 7), (40, 7), (500, 60)])
def test_counts_predict_as_the_definition_says(count: int, vocabulary: int) -> None:
    counted, asked = drawn(0, count, vocabulary), drawn(1, 80, vocabulary)
    counts = TokenCounts(vocabulary)
    for start in range(0, count, 33):  # in pieces, as a large corpus is counted
        counts.add(predictions(counted[start : start + 33]))
    tokens, pairs = literal_losses(counted, asked, vocabulary)
    np.testing.assert_allclose(counts.token_losses(predictions(asked)), tokens, rtol=1e-12)
    np.testing.assert_allclose(counts.pair_losses(predictions(asked)), pairs, rtol=1e-12)
    assert counts.total == count


def test_probabilities_sum_to_one() -> None:
    vocabulary = 12
    counts = TokenCounts(vocabulary)
    counts.add(predictions(drawn(2, 50, vocabulary)))
    for context in range(vocabulary):
        every = predictions([(context, target) for target in range(vocabulary)])
        assert np.exp(-counts.token_losses(every)).sum() == pytest.approx(1)
        assert np.exp(-counts.pair_losses(every)).sum() == pytest.approx(1)


def test_no_predictor_without_context_is_below_the_tokens_own_frequencies() -> None:
    asked = predictions(drawn(3, 300, 20))
    bound = own_frequency_losses(asked).mean()
    shares = np.array(list(Counter(asked.targets.tolist()).values())) / 300
    assert bound == pytest.approx(-(shares * np.log(shares)).sum())
    draw = np.random.default_rng(4)
    for _ in range(50):
        guess = np.exp(draw.normal(size=20))
        assert -np.log(guess / guess.sum())[asked.targets].mean() > bound
    same = TokenCounts(20)
    same.add(asked)
    assert same.token_losses(asked).mean() > bound
    with pytest.raises(InputError, match="no token to predict"):
        own_frequency_losses(predictions([]))


@pytest.mark.parametrize("parts", [2, 3, 10])
def test_pairs_of_a_document_are_predicted_by_other_documents(parts: int) -> None:
    pairs, documents = drawn(5, 90, 9), [number // 15 * 7 for number in range(90)]  # six documents
    vocabulary = 11
    found = cross_fitted_pair_losses(predictions(pairs, documents), vocabulary, parts)
    assert found is not None
    for place, pair in enumerate(pairs):
        part = place // 15 % min(parts, 6)
        others = [other for index, other in enumerate(pairs) if index // 15 % min(parts, 6) != part]
        assert found[place] == pytest.approx(literal_losses(others, [pair], vocabulary)[1][0])
    assert cross_fitted_pair_losses(predictions(pairs), vocabulary, parts) is None


def test_predictions_of_packed_rows_are_those_of_the_loss(tmp_path: Path) -> None:
    """The first token of a document, and padding, are predicted by nothing."""
    folder = tmp_path / "store"
    documents = [[5, 6, 7, 0], [8, 0], [9, 9, 9, 9, 9, 0]]
    with TokenStoreWriter(folder, 10) as writer:
        for document in documents:
            writer.append(np.array(document))
    rows = PackedDataset(TokenStore(folder, 0), 5, keep_partial=True)
    batch = rows.batch(range(len(rows)))
    numbers = torch.from_numpy(rows.target_documents(range(len(rows))))
    found = Predictions.of(batch.input_ids, batch.targets, numbers)
    expected = [pair for document in documents for pair in pairwise(document)]
    assert list(zip(found.contexts.tolist(), found.targets.tolist(), strict=True)) == expected
    assert found.documents.tolist() == [number for number, one in enumerate(documents) for _ in one[1:]]
    assert len(found) == rows.num_predicted_tokens
