from __future__ import annotations

from math import sqrt

import numpy as np
import pytest

from mixln.data import training_rows
from mixln.data.order import permute

SIZES = [
    *range(1, 40),
    *(size for power in (6, 7, 8, 10, 13, 16) for size in (2**power - 1, 2**power, 2**power + 1)),
    *(97, 101, 997, 10_007, 65_537 * 3, 100_000),
]


@pytest.mark.parametrize("size", SIZES)
def test_every_epoch_is_a_permutation(size: int) -> None:
    for seed, epoch in ((0, 0), (1, 0), (0, 1), (2**80, 3)):
        assert np.array_equal(np.sort(permute(np.arange(size), size, seed, epoch)), np.arange(size))


def test_entries_do_not_depend_on_which_others_are_asked_for() -> None:
    whole = permute(np.arange(1000), 1000, 5, 6)
    assert permute(np.array([7, 999, 7, 0]), 1000, 5, 6).tolist() == whole[[7, 999, 7, 0]].tolist()
    assert permute(np.arange(1000).reshape(10, 100), 1000, 5, 6).tolist() == whole.reshape(10, 100).tolist()
    assert permute(np.empty(0, dtype=np.int64), 1000, 5, 6).shape == (0,)


def test_the_order_is_what_it_has_always_been() -> None:
    """Written down when the order was made: a resumed run must see the rows that it would have seen."""
    assert training_rows(10, 0, 10, 0).tolist() == [8, 5, 2, 0, 4, 1, 9, 6, 7, 3]
    assert training_rows(1_000_003, 5, 6, 7).tolist() == [323293, 639992, 329243, 102847, 675942, 359407]
    huge = training_rows(2**40, 123456, 4, 2**70)
    assert huge.tolist() == [1007558628464, 275029323435, 46528634726, 94399816873]


@pytest.mark.parametrize("size", [5, 8, 13, 64, 100])
def test_every_row_comes_equally_often_at_every_place(size: int) -> None:
    epochs = 3000
    counts = np.zeros((size, size))
    for epoch in range(epochs):
        counts[np.arange(size), permute(np.arange(size), size, 11, epoch)] += 1
    expected = epochs / size
    # Rows and columns have fixed sums: (size-1)^2 degrees of freedom. Five standard deviations of chi-squared.
    freedom = (size - 1) ** 2
    chi_squared = ((counts - expected) ** 2 / expected).sum()
    assert abs(chi_squared - freedom) < 5 * sqrt(2 * freedom)


def test_neighbours_are_scattered() -> None:
    """Differences of neighbours, places, and orders of other seeds and epochs are those of chance."""
    size = 50_000
    order = permute(np.arange(size), size, 1, 0)
    deviation = 1 / sqrt(size)  # of a correlation of independent orders
    for other in (
        np.arange(size),
        np.roll(order, 1),
        permute(np.arange(size), size, 1, 1),
        permute(np.arange(size), size, 2, 0),
    ):
        assert abs(np.corrcoef(order, other)[0, 1]) < 5 * deviation
    for bit in range(15):  # no bit of the place shows in any bit of the row
        place = np.arange(size) >> bit & 1
        for other in range(15):
            assert abs(np.corrcoef(place, order >> other & 1)[0, 1]) < 5 * deviation
    # A random permutation has about one fixed point, and about one pair (i, i+1) that stays together.
    assert (order == np.arange(size)).sum() < 8
    assert (np.diff(order) == 1).sum() < 8


def test_small_sizes_reach_every_order() -> None:
    orders = {tuple(permute(np.arange(4), 4, 0, epoch).tolist()) for epoch in range(600)}
    assert len(orders) == 24
