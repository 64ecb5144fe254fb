"""How well rewards agree with preferences, and how much of that is length: intervals over prompts, and a verdict.

Pairs with one prompt are alike, so prompts are drawn, not pairs: intervals are clustered by prompt.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean, pstdev

from mixln.confidence import grouped_mean_interval, grouped_share_interval

_LIKE_LENGTH = 0.95
"""Share of pairs in which the longer answer gets the higher reward: the model is said to prefer length."""


@dataclass(frozen=True)
class PairScores:
    """Rewards of pairs.

    Attributes:
        chosen: of the preferred answers.
        rejected: of the others.
        chosen_lengths: tokens of the preferred answers.
        rejected_lengths: of the others.
        prompts: what is equal for pairs with one prompt.
    """

    chosen: Sequence[float]
    rejected: Sequence[float]
    chosen_lengths: Sequence[int]
    rejected_lengths: Sequence[int]
    prompts: Sequence[str]

    @property
    def credits(self) -> list[float]:
        """For each pair 1 if the preferred answer has the higher reward, 1/2 if both have the same, else 0."""
        return _credits(self.chosen, self.rejected)

    @property
    def credits_of_the_longer(self) -> list[float]:
        """The same of the rule that the longer answer is the better."""
        return _credits(self.chosen_lengths, self.rejected_lengths)

    @property
    def loss(self) -> float:
        """Mean of -log sigmoid(r_chosen - r_rejected) (Bradley and Terry 1952); log 2 if it does not choose."""
        return fmean(_softplus(bad - good) for good, bad in zip(self.chosen, self.rejected, strict=True))


@dataclass(frozen=True)
class PairAccuracy:
    """The share of pairs whose preferred answer has the higher reward; a tie counts half.

    Attributes:
        accuracy: the share.
        interval: of 95 %, over prompts: Wilson's, at the number of independent pairs.
        pairs: how many.
        prompts: how many they have.
    """

    accuracy: float
    interval: tuple[float, float]
    pairs: int
    prompts: int


@dataclass(frozen=True)
class LengthBias:
    """How much of the preferences, and of the rewards, is length (tokens of the answer).

    Attributes:
        longer: the accuracy of the rule that the longer answer is the better.
        difference: accuracy of the model less that of the better of two rules, the longer or the shorter answer.
        difference_interval: of 95 %, over prompts, on the same pairs, within [-1, 1]; all of it for one prompt.
        prefers_longer: share of pairs in which the longer answer has the higher reward; None: all are of equal length.
        correlation: of the difference in reward with the difference in length, both of chosen less rejected, about
            zero: sum(dr * dl) / sqrt(sum(dr^2) sum(dl^2)), which is the same whichever answer is called the first.
        longer_chosen: accuracy on pairs whose longer answer is preferred; None: there are none.
        shorter_chosen: accuracy on pairs whose shorter answer is preferred, where length does not help.
    """

    longer: PairAccuracy
    difference: float
    difference_interval: tuple[float, float]
    prefers_longer: float | None
    correlation: float | None
    longer_chosen: PairAccuracy | None
    shorter_chosen: PairAccuracy | None


@dataclass(frozen=True)
class RewardRange:
    """The rewards of all answers: mean, standard deviation, lowest and highest."""

    mean: float
    deviation: float
    lowest: float
    highest: float


def pair_accuracy(credits: Sequence[float], prompts: Sequence[str]) -> PairAccuracy:
    """Return the accuracy of something that chooses in pairs.

    Args:
        credits: of each pair, 1, 1/2 or 0.
        prompts: of each.
    """
    return PairAccuracy(fmean(credits), grouped_share_interval(credits, prompts), len(credits), len(set(prompts)))


def length_bias(scores: PairScores) -> LengthBias:
    """Return how much of preferences and rewards is length."""
    own, longer = scores.credits, scores.credits_of_the_longer
    rule = longer if fmean(longer) >= 0.5 else [1 - credit for credit in longer]
    differences = [one - other for one, other in zip(own, rule, strict=True)]
    low, high = grouped_mean_interval(differences, scores.prompts)  # of one prompt it is infinite
    by_reward = [good - bad for good, bad in zip(scores.chosen, scores.rejected, strict=True)]
    by_length = [good - bad for good, bad in zip(scores.chosen_lengths, scores.rejected_lengths, strict=True)]
    sizes = math.sqrt(sum(one * one for one in by_reward)) * math.sqrt(sum(one * one for one in by_length))
    products = [one * other for one, other in zip(by_reward, by_length, strict=True)]
    told = [
        1.0 if one > 0 else 0.5 if reward == 0 else 0.0
        for one, reward, length in zip(products, by_reward, by_length, strict=True)
        if length
    ]
    return LengthBias(
        pair_accuracy(longer, scores.prompts),
        fmean(differences),
        (max(-1.0, low), min(1.0, high)),
        fmean(told) if told else None,
        sum(products) / sizes if sizes else None,
        _accuracy_where(own, scores.prompts, [one > 0 for one in by_length]),
        _accuracy_where(own, scores.prompts, [one < 0 for one in by_length]),
    )


def reward_range(scores: PairScores) -> RewardRange:
    """Return mean, spread and extremes of the rewards."""
    rewards = [*scores.chosen, *scores.rejected]
    return RewardRange(fmean(rewards), pstdev(rewards), min(rewards), max(rewards))


def holds_half(accuracy: PairAccuracy) -> bool:
    """Whether an accuracy cannot be told from that of a coin."""
    return accuracy.interval[0] <= 0.5 <= accuracy.interval[1]


def verdict(scores: PairScores) -> str:
    """One sentence: what the accuracy can be told from."""
    found, bias = pair_accuracy(scores.credits, scores.prompts), length_bias(scores)
    if all(credit == 0.5 for credit in scores.credits):
        return "it gives both answers of every pair the same reward: it does not choose"
    if holds_half(found):
        return "it cannot be told from 50 %, which is what a coin has"
    if found.accuracy < 0.5:
        return "it is below 50 %: it prefers the answers that were rejected"
    remarks = ["it is above 50 %"]
    rule = "longer" if bias.longer.accuracy >= 0.5 else "shorter"
    low, high = bias.difference_interval
    where = "above" if low > 0 else "below" if high < 0 else "not distinguishable from"
    remarks.append(
        f"{where} always choosing the {rule} answer ({max(bias.longer.accuracy, 1 - bias.longer.accuracy):.1%})"
    )
    if bias.prefers_longer is not None and max(bias.prefers_longer, 1 - bias.prefers_longer) >= _LIKE_LENGTH:
        liked = "longer" if bias.prefers_longer > 0.5 else "shorter"
        share = max(bias.prefers_longer, 1 - bias.prefers_longer)
        remarks.append(f"it gives the {liked} answer the higher reward in {share:.0%} of the pairs")
    return "; ".join(remarks)


def _accuracy_where(credits: Sequence[float], prompts: Sequence[str], chosen: Sequence[bool]) -> PairAccuracy | None:
    places = [place for place, is_chosen in enumerate(chosen) if is_chosen]
    if not places:
        return None
    return pair_accuracy([credits[place] for place in places], [prompts[place] for place in places])


def _credits(first: Sequence[float], second: Sequence[float]) -> list[float]:
    return [(good > bad) + 0.5 * (good == bad) for good, bad in zip(first, second, strict=True)]


def _softplus(value: float) -> float:
    return max(value, 0.0) + math.log1p(math.exp(-abs(value)))
