"""What the accuracy of rewards is worth: intervals over prompts, length, and the verdict."""

from __future__ import annotations

import math
import random
from statistics import fmean

import pytest

from mixln.confidence import accuracy_interval, grouped_mean_interval, grouped_share_interval
from mixln.evaluation.preferences import PairScores, holds_half, length_bias, pair_accuracy, verdict


def scores(
    chosen: list[float], rejected: list[float], lengths: list[tuple[int, int]], prompts: list[str] | None = None
) -> PairScores:
    first, second = zip(*lengths, strict=True)
    return PairScores(chosen, rejected, first, second, prompts or [str(number) for number in range(len(chosen))])


def test_pairs_of_their_own_prompts_have_wilsons_interval() -> None:
    credits = [1.0] * 70 + [0.0] * 30
    assert grouped_share_interval(credits, range(100)) == accuracy_interval(0.7, 100)


def test_equal_pairs_of_a_prompt_count_as_one() -> None:
    """Five copies of each pair say what one says; the interval has a few degrees of freedom less."""
    credits = [1.0] * 35 + [0.0] * 15
    low, high = grouped_share_interval(credits * 5, [*range(50)] * 5)
    alone = accuracy_interval(0.7, 50)
    assert low == pytest.approx(alone[0], abs=0.01)
    assert high == pytest.approx(alone[1], abs=0.01)
    assert accuracy_interval(0.7, 250)[0] > low + 0.05


def test_the_interval_of_grouped_pairs_holds_the_truth_as_often_as_it_says() -> None:
    """Prompts with a share of their own, Beta(2, 2) about 1/2; an interval over pairs would miss it far more often."""
    draw = random.Random(0)
    held = held_by_pairs = 0
    for _ in range(500):
        credits, prompts = [], []
        for prompt in range(40):
            share = draw.betavariate(2, 2)
            for _ in range(draw.choice([2, 5, 9])):
                credits.append(float(draw.random() < share))
                prompts.append(prompt)
        low, high = grouped_share_interval(credits, prompts)
        held += low <= 0.5 <= high
        low, high = accuracy_interval(fmean(credits), len(credits))
        held_by_pairs += low <= 0.5 <= high
    assert 0.92 <= held / 500 <= 0.98
    assert held_by_pairs / 500 < 0.90


def test_one_prompt_says_nothing_of_others() -> None:
    assert grouped_share_interval([1.0, 1.0, 0.0], "aaa") == (0.0, 1.0)
    assert grouped_mean_interval([1.0, 0.0], "aa") == (-math.inf, math.inf)
    assert grouped_share_interval([1.0], "a") == (0.0, 1.0)


@pytest.mark.parametrize("share", [0.0, 1.0])
def test_a_share_of_all_or_none_has_an_interval_of_the_number_of_prompts(share: float) -> None:
    assert grouped_share_interval([share] * 60, [*range(20)] * 3) == accuracy_interval(share, 20)


def test_ties_count_half_and_a_constant_does_not_choose() -> None:
    found = scores([1.0] * 8, [1.0] * 8, [(3, 2)] * 8)
    assert pair_accuracy(found.credits, found.prompts).accuracy == 0.5
    assert found.loss == pytest.approx(math.log(2))
    assert "does not choose" in verdict(found)


def test_rewards_that_are_lengths_are_said_to_be() -> None:
    draw = random.Random(1)
    lengths = [(draw.randint(1, 30), draw.randint(1, 30)) for _ in range(200)]
    lengths = [(max(two), min(two)) if draw.random() < 0.75 else (min(two), max(two)) for two in lengths]
    found = scores([one / 10 for one, _ in lengths], [other / 10 for _, other in lengths], lengths)
    bias = length_bias(found)
    assert bias.correlation == pytest.approx(1)
    assert bias.prefers_longer == 1
    assert bias.difference == 0
    assert bias.longer_chosen is not None
    assert bias.longer_chosen.accuracy == 1
    assert bias.shorter_chosen is not None
    assert bias.shorter_chosen.accuracy == 0
    said = verdict(found)
    assert "above 50 %; not distinguishable from always choosing the longer answer" in said
    assert "gives the longer answer the higher reward in 100% of the pairs" in said


def test_the_correlation_does_not_depend_on_which_answer_is_called_the_first() -> None:
    draw = random.Random(2)
    rows = [(draw.gauss(1, 1), draw.gauss(0, 1), draw.randint(1, 9), draw.randint(1, 9)) for _ in range(40)]
    turned = [(b, a, m, n) if draw.random() < 0.5 else (a, b, n, m) for a, b, n, m in rows]
    found = [
        length_bias(scores([a for a, *_ in some], [b for _, b, *_ in some], [(n, m) for *_, n, m in some])).correlation
        for some in (rows, turned)
    ]
    assert found[0] == pytest.approx(found[1])


@pytest.mark.parametrize(
    ("right", "said"),
    [
        (50, "cannot be told from 50 %"),
        (58, "cannot be told from 50 %"),
        (75, "above 50 %; above always choosing"),
        (20, "below 50 %: it prefers the answers that were rejected"),
    ],
)
def test_the_verdict_is_that_of_the_interval(right: int, said: str) -> None:
    lengths = [(2, 1), (1, 2)] * 50  # which tell nothing
    found = scores([float(number < right) for number in range(100)], [0.5] * 100, lengths)
    accuracy = pair_accuracy(found.credits, found.prompts)
    assert accuracy.accuracy == right / 100
    assert said in verdict(found)
    assert holds_half(accuracy) == ("cannot" in said)


def test_the_loss_is_that_of_bradley_and_terry() -> None:
    found = scores([2.0, -800.0, 0.5], [1.0, 700.0, 0.5], [(1, 1)] * 3)
    expected = [-math.log(1 / (1 + math.exp(-1.0))), 1500.0, math.log(2)]
    assert found.loss == pytest.approx(fmean(expected))
