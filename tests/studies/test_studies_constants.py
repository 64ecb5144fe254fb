from __future__ import annotations

import math
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy import stats
from tiny import tiny_recipe

from mixln.data import PreparedData, prepare_data
from mixln.studies.constants import TrainingFrequencies
from mixln.tasks import build_model


@pytest.fixture(scope="module")
def many(corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> PreparedData:
    """Validation text of several documents."""
    recipe = tiny_recipe(corpus)
    wanted = replace(recipe.data, max_validation_tokens=1_000_000)
    return prepare_data(wanted, tmp_path_factory.mktemp("cache"))


def documents_of(data: PreparedData, split: str) -> list[list[int]]:
    store = getattr(data, split).store
    return [part.tolist() for part in np.split(store.tokens, store.document_ends[:-1])]


def frequency_losses(data: PreparedData, documents: list[list[int]]) -> dict[int, float]:
    """-log p of every token by the definition, from the tokens that training predicts."""
    counts = Counter(token for document in documents for token in document[1:])
    total, different, vocabulary = sum(counts.values()), len(counts), len(data.tokenizer)
    return {
        token: -math.log((counts[token] + different / vocabulary) / (total + different)) for token in range(vocabulary)
    }


def test_a_model_is_compared_with_the_frequencies_of_training_tokens(many: PreparedData, corpus: Path) -> None:
    """Document by document, in plain code, with scipy's Student t."""
    frequencies = TrainingFrequencies(many)
    train = documents_of(many, "train")
    last = len(many.train) * many.train.sequence_length + 1  # training drops the last tokens that fill no row
    flat = [token for document in train for token in document][:last]
    cut: list[list[int]] = []
    for document in train:
        cut.append(flat[sum(map(len, cut)) :][: len(document)])
    losses = frequency_losses(many, cut)
    validation = documents_of(many, "validation")
    predicted = [token for document in validation for token in document[1:]]
    expected = sum(losses[token] for token in predicted) / len(predicted)
    constants = frequencies.constants
    assert constants.token_frequencies == pytest.approx(expected, rel=1e-12)
    assert (constants.counted_tokens, constants.validation_tokens) == (sum(len(one[1:]) for one in cut), len(predicted))

    model = build_model(tiny_recipe(corpus), many.tokenizer).eval()
    found = frequencies.loss_over(model, 3, None)
    rows = many.validation.batch(range(len(many.validation)))
    with torch.no_grad():
        logits = model(input_ids=rows.input_ids, position_ids=rows.position_ids, use_cache=False).logits
    own = torch.nn.functional.cross_entropy(logits.flatten(0, 1).double(), rows.targets.flatten(), reduction="none")
    own = own[rows.targets.flatten() != -100].tolist()
    sums: list[float] = []
    for document in validation:
        here, own = own[: len(document) - 1], own[len(document) - 1 :]
        sums.append(sum(here) - sum(losses[token] for token in document[1:]))
    sizes, mean = [len(one) - 1 for one in validation], sum(sums) / len(predicted)
    count = len(validation)
    assert count > 3
    error = math.sqrt(
        count / (count - 1) * sum((one - mean * size) ** 2 for one, size in zip(sums, sizes, strict=True))
    ) / len(predicted)
    reach = stats.t.ppf(0.975, count - 1) * error
    assert found.value == pytest.approx(mean, rel=1e-5)
    assert found.interval == pytest.approx((mean - reach, mean + reach), rel=1e-5)


def test_of_a_large_corpus_rows_spread_over_it_are_counted(many: PreparedData) -> None:
    whole, part = TrainingFrequencies(many).constants, TrainingFrequencies(many, most_tokens=20_000).constants
    assert part.counted_tokens <= 20_000 < whole.counted_tokens
    assert part.train_tokens == whole.train_tokens
    assert part.token_frequencies == pytest.approx(whole.token_frequencies, abs=0.05)
    assert part.token_pairs > whole.token_pairs
