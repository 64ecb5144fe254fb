"""What became of a policy's rewards: gains paired by prompt, win rates, and a verdict in words."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from statistics import fmean, stdev

import torch

from mixln.confidence import with_interval
from mixln.evaluation.answers import accuracy_interval
from mixln.measure.estimates import ratio_estimates

Numbers = Sequence[Sequence[float]]
"""Of each prompt, a number for each of its completions."""


@dataclass(frozen=True)
class Completions:
    """What a model wrote to held-out prompts: of each prompt a list, with an entry for each completion.

    Attributes:
        texts: without special tokens.
        lengths: in tokens, the end token included.
        ended: whether it ended within the tokens that it had.
        divergences: KL to the start along it, in nats; empty lists, where nothing is compared.
    """

    texts: list[list[str]]
    lengths: list[list[int]]
    ended: list[list[bool]]
    divergences: list[list[float]] = field(default_factory=list)

    @property
    def mean_length(self) -> float:
        """Tokens of a completion."""
        return fmean(length for lengths in self.lengths for length in lengths)

    @property
    def unfinished(self) -> float:
        """The share of the completions that did not end."""
        return fmean(not ended for several in self.ended for ended in several)


@dataclass(frozen=True)
class MeanEstimate:
    """A mean and its 95 % interval over prompts, Student's t; None: it cannot be given."""

    value: float
    interval: tuple[float, float] | None

    @property
    def sign(self) -> int:
        """1 or -1 where it can be told from zero, else 0."""
        if self.interval is None or self.interval[0] <= 0 <= self.interval[1]:
            return 0
        return 1 if self.value > 0 else -1

    def divided(self, by: float) -> MeanEstimate:
        """The estimate in other units."""
        interval = None if self.interval is None else (self.interval[0] / by, self.interval[1] / by)
        return MeanEstimate(self.value / by, interval)

    def format(self, form: str) -> str:
        """The number and its interval."""
        return with_interval(self.value, self.interval, form)


def mean_over_prompts(values: Numbers, weights: Numbers | None = None) -> MeanEstimate:
    """The mean over all completions, or sum / sum of weights, with an interval that takes prompts as the draws.

    Args:
        values: to average.
        weights: that sums are divided by, such as tokens; None: 1 of each.
    """
    sums = torch.tensor([math.fsum(several) for several in values], dtype=torch.float64)
    counts = torch.tensor(
        [float(len(several)) for several in values] if weights is None else [math.fsum(some) for some in weights],
        dtype=torch.float64,
    )
    found = ratio_estimates(sums, counts)
    low, high = found.low.item(), found.high.item()
    return MeanEstimate(found.value.item(), None if math.isnan(low) or math.isnan(high) else (low, high))


def paired_rise(after: Numbers, before: Numbers) -> MeanEstimate:
    """Mean over prompts of the mean reward after less that before."""
    return mean_over_prompts([[fmean(one) - fmean(two)] for one, two in zip(after, before, strict=True)])


def deviation_of(rewards: Numbers) -> float:
    """Standard deviation over all completions; 0 if it is no more than rounding."""
    flat = [reward for several in rewards for reward in several]
    spread = stdev(flat) if len(flat) > 1 else 0.0
    return spread if spread > 1e-9 * max(map(abs, flat)) else 0.0


def win_rate(after: Numbers, before: Numbers) -> MeanEstimate:
    """Share of all pairs of completions of a prompt, one of each model, in which the first has the higher reward.

    Ties count half. The interval is Wilson's for a share of as many items as there are prompts, which is no narrower
    than what pairs of one prompt allow.
    """
    shares = [
        fmean(0.5 if one == two else float(one > two) for one in ours for two in theirs)
        for ours, theirs in zip(after, before, strict=True)
    ]
    return MeanEstimate(fmean(shares), accuracy_interval(fmean(shares), len(shares)))


def describe_rise(rise: MeanEstimate, deviation: float) -> str:
    """Say whether a reward rose, in standard deviations of the start's rewards."""
    if deviation:
        size, unit = rise.divided(deviation), "standard deviations of the start's rewards"
    else:
        size, unit = rise, "(the start's rewards are all equal, so there is no standard deviation)"
    if rise.sign == 0:
        if rise.value == 0 and rise.interval == (0.0, 0.0):
            return "the reward is what it was, at every prompt"
        return f"cannot be told: the reward changed by {size.format('+.2f')} {unit}"
    word = "rose" if rise.sign > 0 else "fell"
    low, high = sorted(map(abs, size.interval or (size.value, size.value)))
    return f"the reward {word} by {abs(size.value):.2f} [{low:.2f}, {high:.2f}] {unit}"


def describe_difference(name: str, baseline: str, reward: MeanEstimate, rise: MeanEstimate) -> str:
    """Say which of two policies ends higher, and whose reward has risen more."""
    ends = {1: "it ends higher", -1: "it ends lower", 0: "which ends higher cannot be told"}[reward.sign]
    rises = {1: "it rose by more", -1: "it rose by less", 0: "which rose by more cannot be told"}[rise.sign]
    return (
        f"{name} less {baseline}, paired by prompt under the same judge: reward {reward.format('+.3f')}, {ends}; rise "
        f"{rise.format('+.3f')}, {rises}"
    )
