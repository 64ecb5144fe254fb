"""What a model answers on a task, and how sure the scores are: intervals over items, and paired tests."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean, stdev

from mixln.confidence import accuracy_interval as accuracy_interval
from mixln.evaluation.harness import LoadedTask, TaskRun
from mixln.evaluation.items import Item, Picks, read_items

_SAME = 1e-6
"""Scores that differ by less than this, relative to their size, are tied: float32 sums are not more precise."""


@dataclass(frozen=True)
class Answers:
    """The scores that a model gives to the options of each item.

    Attributes:
        items: of the task.
        scores: for each item the log-likelihood of each option (natural logarithm).
    """

    items: list[Item]
    scores: list[list[float]]

    @property
    def can_be_normalized(self) -> bool:
        """Whether options have lengths of their own: where only the prompts differ, all score the same text."""
        return all(item.prompt is not None for item in self.items)

    def picks(self, *, normalized: bool = False) -> Picks:
        """The likeliest option of each item; several if they are tied; none if a score is NaN.

        Args:
            normalized: divide a score by the characters of its option (`acc_norm` of lm-evaluation-harness).
        """
        found: Picks = []
        for item, scores in zip(self.items, self.scores, strict=True):
            if normalized:
                scores = [score / max(1, len(option)) for score, option in zip(scores, item.options, strict=True)]
            found.append(_likeliest(scores))
        return found


def read_answers(task: LoadedTask, found: TaskRun) -> Answers | None:
    """Return the answers in what `run_task` gave, items in their order; None: the task is not of multiple choice."""
    items: list[Item] = []
    scores: list[list[float]] = []
    for name, part in task.parts.items():
        if part.OUTPUT_TYPE != "multiple_choice":
            return None
        samples = found.samples[name]
        chosen = [one for one in samples if one["filter"] == samples[0]["filter"]]
        chosen.sort(key=lambda sample: sample["doc_id"])
        items += read_items(part, chosen)
        for sample, item in zip(chosen, items[-len(chosen) :], strict=True):
            # behind the options' own come, for `acc_mutual_info`, those of the options without the prompt
            likelihoods = [float(one[0]) for one in sample["filtered_resps"]]
            scores.append(likelihoods[: len(item.options)])
    return Answers(items, scores)


def _likeliest(scores: Sequence[float]) -> list[int]:
    if any(map(math.isnan, scores)):
        return []
    best = max(scores)
    return [place for place, score in enumerate(scores) if score == best or math.isclose(score, best, rel_tol=_SAME)]


def place_counts(picks: Picks) -> dict[int, int]:
    """How often each place (from 0) was answered alone."""
    counts = Counter(picked[0] for picked in picks if len(picked) == 1)
    return dict(sorted(counts.items()))


def agreement(picks: Picks, others: Picks) -> float:
    """The share of items in which two ways to answer pick the same: the mean of |both| / |either|."""
    shares = [
        len({*one} & {*other}) / len({*one} | {*other}) if one or other else 1.0
        for one, other in zip(picks, others, strict=True)
    ]
    return fmean(shares)


def mean_interval(values: Sequence[float]) -> tuple[float, float] | None:
    """The 95 % interval of a mean, by Student's t; None: there are fewer than two values."""
    from scipy import stats

    if len(values) < 2:
        return None
    mean, error = fmean(values), stdev(values) / math.sqrt(len(values))
    reach = float(stats.t.ppf(0.975, len(values) - 1)) * error
    return mean - reach, mean + reach


@dataclass(frozen=True)
class PairedDifference:
    """One way to answer less another, on the same items.

    Attributes:
        value: difference of the means.
        interval: of 95 %, by Student's t over the items' differences.
        p_value: of McNemar's exact test, two-sided; None: a way gives parts of a credit, so the test is not defined.
        better: items that the first has right and the second has wrong.
        worse: the other way round.
    """

    value: float
    interval: tuple[float, float]
    p_value: float | None
    better: int
    worse: int

    @property
    def sign(self) -> int:
        """1 or -1 where the difference can be told from zero, by the interval and by the test; else 0."""
        low, high = self.interval
        if (self.p_value is not None and self.p_value >= 0.05) or low <= 0 <= high:
            return 0
        return 1 if self.value > 0 else -1


def paired_difference(first: Sequence[float], second: Sequence[float]) -> PairedDifference:
    """Compare two ways to answer by what each item counts, in [0, 1].

    McNemar 1947, exact: of the items that only one has right, each is as likely the one's as the other's.
    """
    from scipy import stats

    differences = [one - other for one, other in zip(first, second, strict=True)]
    interval = mean_interval(differences) or (-math.inf, math.inf)
    better, worse = sum(one > 0 for one in differences), sum(one < 0 for one in differences)
    p_value = float(stats.binomtest(better, better + worse).pvalue) if better + worse else 1.0
    whole = all(credit in (0, 1) for credit in (*first, *second))
    return PairedDifference(fmean(differences), interval, p_value if whole else None, better, worse)
