"""The fast suite leaves out no pair of an architecture, a placement and a test."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
from architecture_tools import PAIRS
from cover import scheme_and_rest, share_of, shared_out
from models_tools import ALL


@pytest.mark.parametrize(("rows", "of"), [(PAIRS, 7), ([scheme_and_rest(text) for text in ALL], 5)])
def test_every_combination_has_a_test_and_every_test_every_value(rows: list[tuple[Any, ...]], of: int) -> None:
    shares = [share_of(rows, share, of) for share in range(of)]
    assert set().union(*shares) == set(rows)
    for share, factor in itertools.product(shares, (0, 1)):
        assert {row[factor] for row in share} == {row[factor] for row in rows}
    assert sum(map(len, shares)) < 1.5 * len(rows)


def test_what_is_in_no_share_is_marked_slow() -> None:
    values = shared_out("text", ["a+x", "a+y", "b+x", "b+y"], share=0, of=2, factors=scheme_and_rest).args[1]
    assert [(value.values, [mark.name for mark in value.marks]) for value in values] == [
        (("a+x",), []), (("a+y",), ["slow"]), (("b+x",), ["slow"]), (("b+y",), []),
    ]  # fmt: skip
