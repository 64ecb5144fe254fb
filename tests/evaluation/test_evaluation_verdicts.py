"""Constants, ties, NaN and verdicts of multiple-choice answers, against plain counting and scipy."""

from __future__ import annotations

import math
import random

import pytest
from scipy import stats

from mixln.evaluation.answers import Answers, accuracy_interval, agreement, paired_difference, place_counts
from mixln.evaluation.items import Item, constants, credits
from mixln.evaluation.verdicts import against_constants, is_above_constants, verdict

NAN = math.nan
LABELS = ["no", "yes"]


def item(*options: str, gold: int = 0, prompt: str = "What is it?") -> Item:
    return Item(list(options), [gold], prompt)


def four_choices(count: int, seed: int = 0) -> list[Item]:
    draw = random.Random(seed)
    return [
        item(*(f"{'word ' * draw.randint(1, 9)}{place}" for place in range(4)), gold=draw.randrange(4))
        for _ in range(count)
    ]


def answers(items: list[Item], choose: list[int | None]) -> Answers:
    """Scores under which these options are the likeliest; None: NaN."""
    scores = [
        [NAN] * len(one.options)
        if place is None
        else [-1.0 if place == other else -9.0 for other in range(len(one.options))]
        for one, place in zip(items, choose, strict=True)
    ]
    return Answers(items, scores)


def gold_of(items: list[Item]) -> list[list[int]]:
    return [one.gold for one in items]


def judged(found: Answers) -> str:
    picks = found.picks()
    return verdict(picks, against_constants(picks, gold_of(found.items), constants(found.items)))


def test_constants_are_counted_from_the_items() -> None:
    items = [
        item("a", "bb bb", gold=1, prompt="bb or not"),
        item("ccc", "d", gold=1, prompt="ccc"),
        item("e", "f", gold=0, prompt="nothing of both"),
        item("gg", "h", gold=1, prompt="h"),
    ]
    scores = {one.name: sum(credits(one.picks, gold_of(items))) / 4 for one in constants(items)}
    assert scores == {
        "chance": 0.5,
        "always the first option": 0.25,
        "always the most frequent answer (option 2)": 0.75,
        "always the shortest option": (0 + 1 + 0.5 + 1) / 4,
        "always the option that repeats the prompt most": (1 + 0 + 0.5 + 1) / 4,
    }


def test_the_majority_class_is_named_where_all_items_have_the_same_options() -> None:
    items = [item(*LABELS, gold=gold) for gold in (1, 1, 0)]
    assert "always the most frequent answer ('yes')" in [one.name for one in constants(items)]


def test_without_a_common_prompt_nothing_repeats_it() -> None:
    items = [Item(["a", "b"], [0], None)]
    assert not any("repeats" in one.name for one in constants(items))


def test_ties_share_the_credit_and_nan_is_no_answer() -> None:
    items = [item("a", "b", "c", gold=2) for _ in range(4)]
    found = Answers(items, [[-1.0, -2.0, -1.0], [NAN, -2.0, -1.0], [-3.0, -2.0, -1.0], [-math.inf] * 3])
    assert found.picks() == [[0, 2], [], [2], [0, 1, 2]]
    assert credits(found.picks(), gold_of(items)) == [0.5, 0.0, 1.0, pytest.approx(1 / 3)]
    assert place_counts(found.picks()) == {2: 1}


def test_normalised_scores_are_divided_by_characters() -> None:
    found = Answers([item("ab", "abcdefgh", gold=1)], [[-4.0, -8.0]])
    assert found.picks() == [[0]]
    assert found.picks(normalized=True) == [[1]]


def test_sums_of_float32_that_differ_in_their_last_bit_are_tied() -> None:
    assert Answers([item("a", "b")], [[-50.000004, -50.0]]).picks() == [[0, 1]]


@pytest.mark.parametrize(("right", "count"), [(0, 10), (3, 10), (10, 10), (250, 1000)])
def test_intervals_of_accuracy_are_those_of_wilson(right: int, count: int) -> None:
    expected = stats.binomtest(right, count).proportion_ci(method="wilson")
    assert accuracy_interval(right / count, count) == pytest.approx((expected.low, expected.high))


def test_paired_differences_are_those_of_scipy() -> None:
    draw = random.Random(1)
    first, second = ([float(draw.random() < share) for _ in range(300)] for share in (0.6, 0.5))
    found = paired_difference(first, second)
    differences = [one - other for one, other in zip(first, second, strict=True)]
    expected = stats.ttest_1samp(differences, 0).confidence_interval(0.95)
    assert found.interval == pytest.approx((expected.low, expected.high))
    assert (found.better, found.worse) == (differences.count(1), differences.count(-1))
    assert found.p_value == pytest.approx(stats.binomtest(found.better, found.better + found.worse).pvalue)


def test_the_test_needs_whole_credits_and_equal_answers_differ_by_nothing() -> None:
    assert paired_difference([0.5, 1.0], [0.0, 1.0]).p_value is None
    same = paired_difference([1.0, 0.0, 1.0], [1.0, 0.0, 1.0])
    assert (same.value, same.interval, same.p_value, same.sign) == (0.0, (0.0, 0.0), 1.0, 0)


def test_agreement_counts_items_with_the_same_picks() -> None:
    assert agreement([[0], [1], [0, 1], []], [[0], [0], [0], []]) == pytest.approx((1 + 0 + 0.5 + 1) / 4)


def test_a_model_whose_scores_are_nan_has_no_answer() -> None:
    items = four_choices(50)
    found = answers(items, [None] * 50)
    assert judged(found) == "no answer to any item: every item has a score that is NaN"
    assert credits(found.picks(), gold_of(items)) == [0.0] * 50


def test_a_model_that_always_gives_the_first_option_is_told() -> None:
    items = four_choices(200)
    found = answers(items, [0] * 200)
    assert judged(found).startswith("answers like always the first option")
    assert "in 100.0% of the items" in judged(found)
    assert "above" not in judged(found)


def test_a_model_that_copies_the_prompt_is_told() -> None:
    draw = random.Random(2)
    items = []
    for number in range(100):
        options = [f"w{number}a b c", f"x{number} y z", f"u{number} v w", f"r{number} s t"]
        items.append(item(*options, gold=draw.randrange(4), prompt=f"about {options[number % 4]} and more"))
    found = answers(items, [number % 4 for number in range(100)])
    assert "answers like always the option that repeats the prompt most in 100.0% of the items" in judged(found)


def test_a_model_whose_options_are_all_tied_does_not_choose() -> None:
    items = four_choices(20)
    assert judged(Answers(items, [[-1.0] * 4] * 20)) == "all options of every item are tied: it does not choose"


def test_a_good_model_is_above_every_constant_and_a_guessing_one_is_not() -> None:
    items = four_choices(400)
    good = answers(items, [one.gold[0] if number % 4 else 0 for number, one in enumerate(items)])
    assert judged(good) == "above every constant answer"
    draw = random.Random(3)
    guessing = answers(items, [draw.randrange(4) for _ in items])
    assert "not distinguishable from chance" in judged(guessing)
    for found, expected in ((good, True), (guessing, False)):
        picks = found.picks()
        assert is_above_constants(picks, against_constants(picks, gold_of(items), constants(items))) == expected


def test_a_score_below_a_constant_is_said_to_be() -> None:
    items = [item(*LABELS, gold=int(number % 4 != 0)) for number in range(400)]
    draw = random.Random(4)
    found = answers(items, [draw.randrange(2) for _ in items])
    assert "below always the most frequent answer ('yes')" in judged(found)


def test_items_without_an_answer_are_counted_in_the_verdict() -> None:
    items = four_choices(100)
    found = answers(items, [None if number < 10 else one.gold[0] for number, one in enumerate(items)])
    assert judged(found) == "above every constant answer; no answer to 10 of 100 items, whose scores are NaN"
