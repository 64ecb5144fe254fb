"""What a score on a task means, in words: which constant answers it can be told from, and which it is."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean

from mixln.evaluation.answers import PairedDifference, agreement, paired_difference
from mixln.evaluation.items import Constant, Picks, credits

_IS_A_CONSTANT = 0.95
"""Agreement in more than this share of the items: the model is said to give that answer."""


@dataclass(frozen=True)
class AgainstConstant:
    """A model beside a constant answer.

    Attributes:
        name: of the constant.
        score: of the constant.
        difference: of the model's score less the constant's.
        agreement: share of the items in which both answer the same.
    """

    name: str
    score: float
    difference: PairedDifference
    agreement: float


def against_constants(
    picks: Picks, gold: Sequence[Sequence[int]], constants: Sequence[Constant]
) -> list[AgainstConstant]:
    """Compare what a model answers with each constant answer, item by item.

    Args:
        picks: of the model.
        gold: the right options of each item.
        constants: of the items.
    """
    own = credits(picks, gold)
    found: list[AgainstConstant] = []
    for constant in constants:
        theirs = credits(constant.picks, gold)
        found.append(
            AgainstConstant(
                constant.name, fmean(theirs), paired_difference(own, theirs), agreement(picks, constant.picks)
            )
        )
    return found


def verdict(picks: Picks, against: Sequence[AgainstConstant]) -> str:
    """One sentence: what the score can be told from.

    "Above" and "below" need a 95 % interval without zero and, where the test is defined, p below 0.05 in McNemar's.
    """
    answered, tied = sum(map(bool, picks)), sum(len(one) > 1 for one in picks)
    if answered == 0:
        return "no answer to any item: every item has a score that is NaN"
    if tied == answered:
        return (
            f"all options of {'every item' if answered == len(picks) else f'{tied} items'} are tied: it does not choose"
        )
    same = _same(against)
    by_sign = {
        sign: [one.name for one in against if one.difference.sign == sign and one not in same] for sign in (0, -1)
    }
    remarks: list[str] = []
    if same:
        share = min(one.agreement for one in same)
        remarks.append(f"answers like {_list([one.name for one in same])} in {share:.1%} of the items")
    if by_sign[-1]:
        remarks.append(f"below {_list(by_sign[-1])}")
    if by_sign[0]:
        remarks.append(f"not distinguishable from {_list(by_sign[0])}")
    if not remarks:
        remarks = ["above every constant answer"]
    if answered < len(picks):
        remarks.append(f"no answer to {len(picks) - answered} of {len(picks)} items, whose scores are NaN")
    return "; ".join(remarks)


def is_above_constants(picks: Picks, against: Sequence[AgainstConstant]) -> bool:
    """Whether a score can be told from every constant answer, and is above."""
    return all(map(bool, picks)) and all(one.difference.sign == 1 for one in against)


def _same(against: Sequence[AgainstConstant]) -> list[AgainstConstant]:
    return [one for one in against if one.agreement >= _IS_A_CONSTANT and one.difference.sign != 1]


def _list(names: Sequence[str]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"
