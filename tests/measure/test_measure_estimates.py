from __future__ import annotations

import math

import pytest
import torch

from mixln.errors import InputError
from mixln.measure.estimates import DocumentSums, ratio_estimates


def test_the_mean_is_over_all_tokens_and_the_interval_over_documents() -> None:
    sums = DocumentSums()
    # document 7 has two rows
    sums.update(torch.tensor([[1.0, 10.0], [5.0, 6.0]]), torch.tensor([2, 3]), torch.tensor([7, 1]))
    sums.update(torch.tensor([[4.0, 2.0], [0.0, 0.0]]), torch.tensor([2, 0]), torch.tensor([7, 2]))
    found = sums.estimate()
    assert (len(sums.stacked()[1]), sums.num_tokens) == (2, 7)
    torch.testing.assert_close(found.value, torch.tensor([10 / 7, 18 / 7], dtype=torch.float64))
    # by hand: totals (5, 12) of 4 tokens and (5, 6) of 3; t(0.975, 1) = 12.7062
    residual = 5 - 10 / 7 * 4
    error = math.sqrt(2 / 1 * 2 * residual**2) / 7
    assert found.high[0].item() - found.value[0].item() == pytest.approx(12.7062 * error, rel=1e-5)
    assert found.value[0].item() - found.low[0].item() == pytest.approx(12.7062 * error, rel=1e-5)


def test_one_document_has_no_interval_and_none_is_an_error() -> None:
    sums = DocumentSums()
    with pytest.raises(InputError, match="no token to measure on"):
        sums.estimate()
    sums.update(torch.tensor([3.0]), torch.tensor([2]), torch.tensor([0]))
    found = sums.estimate()
    assert found.value.item() == 1.5
    assert math.isnan(found.low.item())
    assert math.isnan(found.high.item())


def test_intervals_hold_the_truth_as_often_as_they_say() -> None:
    """Documents of unequal lengths whose means differ: 95 % intervals of the mean over all tokens."""
    generator = torch.Generator().manual_seed(0)
    repetitions, documents = 2000, 20
    counts = torch.randint(5, 50, (repetitions, documents), generator=generator).double()
    means = 3 + torch.randn(repetitions, documents, generator=generator).double()
    noise = torch.randn(repetitions, documents, generator=generator).double()
    sums = means * counts + noise * counts.sqrt()
    covered = 0
    for index in range(repetitions):
        found = ratio_estimates(sums[index], counts[index])
        covered += int(found.low <= 3 <= found.high)
    assert 0.92 < covered / repetitions < 0.97
