"""What became of rewards: means, gains and win rates against formulas, and their words."""

from __future__ import annotations

import math
from statistics import fmean, stdev

import pytest

from mixln.confidence import accuracy_interval, student_t_two_sided
from mixln.evaluation.policies import (
    MeanEstimate,
    describe_difference,
    describe_rise,
    deviation_of,
    mean_over_prompts,
    paired_rise,
    win_rate,
)

BEFORE = [[1.0, 3.0], [2.0, 2.0], [0.0, 4.0], [5.0, 1.0]]
AFTER = [[2.0, 4.0], [2.0, 3.0], [1.0, 7.0], [4.0, 4.0]]


def student(values: list[float]) -> tuple[float, float]:
    reach = student_t_two_sided(0.95, len(values) - 1) * stdev(values) / math.sqrt(len(values))
    return fmean(values) - reach, fmean(values) + reach


def test_a_mean_has_the_interval_of_student_over_prompts() -> None:
    found = mean_over_prompts(BEFORE)
    means = [fmean(one) for one in BEFORE]
    assert found.value == fmean(means)
    assert found.interval == pytest.approx(student(means))
    rises = [fmean(now) - fmean(was) for now, was in zip(AFTER, BEFORE, strict=True)]
    assert paired_rise(AFTER, BEFORE).interval == pytest.approx(student(rises))
    assert mean_over_prompts([[1.0, 2.0]]) == MeanEstimate(1.5, None), "one prompt says nothing of others"


def test_a_mean_of_tokens_weighs_completions_by_their_length() -> None:
    found = mean_over_prompts([[2.0, 4.0], [9.0]], [[1, 2], [3]])
    assert found.value == (2 + 4 + 9) / 6


def test_the_win_rate_counts_all_pairs_of_a_prompt() -> None:
    found = win_rate([[1.0, 2.0], [3.0, 3.0]], [[1.0, 0.0], [4.0, 5.0]])
    assert found.value == ((0.5 + 1 + 1 + 1) / 4 + 0) / 2
    assert found.interval == accuracy_interval(found.value, 2)


def test_the_deviation_is_over_completions_and_rounding_is_none() -> None:
    assert deviation_of(BEFORE) == stdev([1, 3, 2, 2, 0, 4, 5, 1])
    assert deviation_of([[0.1 + 0.2], [0.3]]) == 0


@pytest.mark.parametrize(
    ("rise", "deviation", "words"),
    [
        (MeanEstimate(1.0, (0.5, 1.5)), 2.0, "the reward rose by 0.50 [0.25, 0.75] standard deviations"),
        (MeanEstimate(-1.0, (-1.5, -0.5)), 2.0, "the reward fell by 0.50 [0.25, 0.75] standard deviations"),
        (MeanEstimate(0.1, (-0.5, 0.7)), 1.0, "cannot be told: the reward changed by +0.10 [-0.50, +0.70] standard"),
        (MeanEstimate(0.0, (0.0, 0.0)), 1.0, "the reward is what it was, at every prompt"),
        (MeanEstimate(1.0, (0.5, 1.5)), 0.0, "rose by 1.00 [0.50, 1.50] (the start's rewards are all equal"),
        (MeanEstimate(1.0, None), 2.0, "cannot be told"),
    ],
)
def test_a_rise_in_words(rise: MeanEstimate, deviation: float, words: str) -> None:
    assert words in describe_rise(rise, deviation)


def test_a_difference_in_words() -> None:
    told, untold = MeanEstimate(0.2, (0.1, 0.3)), MeanEstimate(-0.1, (-0.3, 0.1))
    text = describe_difference("mix", "pre", told, untold)
    assert "mix less pre" in text
    assert "reward +0.200 [+0.100, +0.300], it ends higher" in text
    assert "rise -0.100 [-0.300, +0.100], which rose by more cannot be told" in text
