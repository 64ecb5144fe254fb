"""Cross products shared out among tests: the fast suite runs a pairwise cover of them, the slow one the whole.

The factors are those of the product (architectures and placements, say) and the tests that run over it. In the fast
suite any two values of two factors meet: every combination is run by one of the tests, and every test runs with every
value.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pytest

Row = tuple[Any, ...]


def shared_out(
    names: str | tuple[str, ...],
    product: Sequence[Any],
    *,
    share: int,
    of: int,
    factors: Callable[[Any], Row] = tuple,
) -> pytest.MarkDecorator:
    """Parametrise a test over a product; what is not in its share is marked slow.

    Args:
        names: of the parameters, as pytest takes them.
        product: their values.
        share: the number of this test among those that run over the product, from 0.
        of: how many such tests there are.
        factors: gives the values of the factors from one element of the product.
    """
    fast = share_of([factors(element) for element in product], share, of)
    return pytest.mark.parametrize(
        names,
        [
            pytest.param(
                *(element if isinstance(element, tuple) else (element,)),
                marks=() if factors(element) in fast else pytest.mark.slow,
            )
            for element in product
        ],
    )


def share_of(rows: Sequence[Row], share: int, of: int) -> set[Row]:
    """Return a share of some rows: those on one diagonal in `of`, and others for values that are on none of these."""
    columns = [list(dict.fromkeys(column)) for column in zip(*rows, strict=True)]
    places = [{value: place for place, value in enumerate(column)} for column in columns]
    found = {row for row in rows if sum(map(dict.__getitem__, places, row)) % of == share}
    for factor, column in enumerate(columns):
        for value in set(column) - {row[factor] for row in found}:
            found.add(next(row for row in rows if row[factor] == value))
    return found


def scheme_and_rest(text: str) -> Row:
    """The factors of a placement: its scheme, and its modifiers."""
    scheme, _, modifiers = text.partition("+")
    return scheme, modifiers
