"""From single runs to one row per scheme: means, spreads, and paired differences to a baseline."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Sequence
from statistics import fmean, stdev

from mixln.confidence import student_t_two_sided
from mixln.errors import InputError
from mixln.report.results import ComparisonResult, Difference, GridPoint, RunResult, SchemeSummary

MIN_SEEDS_FOR_INTERVAL = 3
"""Paired seeds below which no confidence interval is given: with 2 it would be 12.7 standard errors wide each way."""


def summarize(runs: Sequence[RunResult], baseline: str | None) -> tuple[list[SchemeSummary], list[GridPoint]]:
    """One row per scheme at its own best learning rate, and every (scheme, learning rate).

    Schemes keep the order in which they first appear. The best learning rate is the one with the lowest mean
    validation loss over its seeds, among those with the most seeds; one at which fewer seeds diverged always wins. The
    difference to the baseline pairs the runs of equal seed that did not diverge, each scheme at its own best learning
    rate, so that what a seed does to both (data order, shared initial draws) cancels.

    Args:
        runs: all runs of one comparison.
        baseline: the placement to take differences to, or None for no differences.

    Raises:
        InputError: the baseline was not run, or one (placement, learning rate, seed) occurs twice, which would count
            one seed as two.
    """
    groups = _group(runs)
    if baseline is not None and baseline not in groups:
        raise InputError(
            f"The baseline {baseline!r} is not among the compared schemes ({', '.join(groups) or 'none'}). "
            "Name one of them, or None for no differences."
        )
    best = {placement: _best_learning_rate(rates) for placement, rates in groups.items()}
    base_runs = groups[baseline][best[baseline]] if baseline is not None else []
    summaries = [
        _summarize_scheme(
            placement,
            best[placement],
            rates[best[placement]],
            _difference(rates[best[placement]], base_runs) if placement != baseline else None,
        )
        for placement, rates in groups.items()
    ]
    grid = [
        GridPoint(placement, rate, _mean(losses(rates[rate]).values()), len(rates[rate]))
        for placement, rates in groups.items()
        for rate in sorted(rates)
    ]
    return summaries, grid


def _difference(runs: Sequence[RunResult], baseline: Sequence[RunResult]) -> Difference | None:
    """The paired difference, unless a run of either scheme has not learned word order: it would compare nothing."""
    return paired_difference(runs, baseline) if all(run.has_learned_order for run in (*runs, *baseline)) else None


def best_summary(summaries: Iterable[SchemeSummary]) -> SchemeSummary | None:
    """The scheme with the lowest mean loss among those none of whose runs diverged.

    A mean over the surviving runs only is too good, so a scheme with diverged runs is best only if there is no other.
    A scheme with a run that has not learned word order is not ranked. None if no scheme is.
    """
    with_loss = [summary for summary in summaries if summary.loss_mean is not None and not summary.without_order]
    return min(with_loss, key=lambda summary: (summary.diverged > 0, summary.loss_mean), default=None)


def is_told(result: ComparisonResult) -> bool:
    """Whether it can be told that the best scheme is better than the baseline; if it is the baseline, than all others.

    That is so where the intervals of the differences lie on one side of 0. Without a baseline nothing can be told.
    """
    best = best_summary(result.summaries)
    if best is None or result.baseline is None:
        return False
    ranked = [summary for summary in result.summaries if summary.loss_mean is not None and not summary.without_order]
    deciding = ranked if best.placement == result.baseline else [best]
    differences = [summary.difference for summary in deciding if summary.placement != result.baseline]
    return bool(differences) and not any(one is None or one.estimate.holds_zero for one in differences)


def losses(runs: Iterable[RunResult]) -> dict[int, float]:
    """Validation losses of runs at one learning rate by their seeds, diverged runs left out."""
    return {run.seed: run.validation_loss for run in runs if run.validation_loss is not None and not has_diverged(run)}


def has_diverged(run: RunResult) -> bool:
    """Whether a run ended without a finite validation loss."""
    return run.diverged or run.validation_loss is None or not math.isfinite(run.validation_loss)


def paired_difference(runs: Sequence[RunResult], baseline: Sequence[RunResult]) -> Difference | None:
    """Mean loss of `runs` minus that of `baseline` over the seeds that both finished; None without such a seed.

    The interval is mean ± t s / sqrt(n), with s the sample standard deviation of the n differences and t the 97.5 %
    quantile of Student's t with n - 1 degrees of freedom.
    """
    own, base = losses(runs), losses(baseline)
    deltas = [loss - base[seed] for seed, loss in own.items() if seed in base]
    if not deltas:
        return None
    mean, count = fmean(deltas), len(deltas)
    if count < MIN_SEEDS_FOR_INTERVAL:
        return Difference(mean, None, count)
    half_width = student_t_two_sided(0.95, count - 1) * stdev(deltas) / math.sqrt(count)
    return Difference(mean, (mean - half_width, mean + half_width), count)


def _group(runs: Sequence[RunResult]) -> dict[str, dict[float, list[RunResult]]]:
    groups: dict[str, dict[float, list[RunResult]]] = {}
    for run in runs:
        same = groups.setdefault(run.placement, {}).setdefault(run.learning_rate, [])
        if twin := next((other for other in same if other.seed == run.seed), None):
            stds = f" (embedding_std {twin.embedding_std:g} and {run.embedding_std:g})"
            differs = stds if twin.embedding_std != run.embedding_std else ""
            raise InputError(
                f"Two runs of {run.placement!r} have seed {run.seed} and learning rate {run.learning_rate:g}{differs}. "
                "A comparison holds one run for each scheme, learning rate and seed: compare other settings apart."
            )
        same.append(run)
    return groups


def _best_learning_rate(rates: dict[float, list[RunResult]]) -> float:
    def rank(rate: float) -> tuple[int, float, float, float]:
        runs = rates[rate]
        mean = _mean(losses(runs).values())
        # a rate that was only tried on the way to another is not judged by its luck with one seed
        return -len(runs), fmean(has_diverged(run) for run in runs), math.inf if mean is None else mean, rate

    return min(rates, key=rank)


def _summarize_scheme(
    placement: str, learning_rate: float, runs: Sequence[RunResult], difference: Difference | None
) -> SchemeSummary:
    values = list(losses(runs).values())
    perplexities = [run.perplexity for run in runs if run.perplexity is not None and not has_diverged(run)]
    return SchemeSummary(
        placement=placement,
        learning_rate=learning_rate,
        seeds=len(runs),
        diverged=len(runs) - len(values),
        loss_mean=_mean(values),
        loss_spread=stdev(values) if len(values) > 1 else None,
        perplexity_mean=_mean(perplexities),
        difference=difference,
        without_order=sum(not run.has_learned_order for run in runs),
    )


def _mean(values: Collection[float]) -> float | None:
    return fmean(values) if values else None
