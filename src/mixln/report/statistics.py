"""From single runs to one row per scheme: means, spreads, and paired differences to a baseline."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Sequence
from dataclasses import replace
from statistics import fmean, stdev

from mixln.confidence import student_t_two_sided
from mixln.errors import InputError
from mixln.report.results import ComparisonResult, Difference, GridPoint, RunResult, SchemeSummary
from mixln.report.series import Estimate
from mixln.report.step_results import Quantity, QuantityChange, QuantitySummary, StepResult, StepRun

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
    """The paired difference, unless a run of either scheme is no better than the constants: nothing is compared."""
    return paired_difference(runs, baseline) if all(run.has_learned for run in (*runs, *baseline)) else None


def best_summary(summaries: Iterable[SchemeSummary]) -> SchemeSummary | None:
    """The scheme with the lowest mean loss among those none of whose runs diverged.

    A mean over the surviving runs only is too good, so a scheme with diverged runs is best only if there is no other.
    A scheme with a run that is no better than the constants is not ranked. None if no scheme is.
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
    found = mean_over_seeds(deltas)
    return Difference(found.value, found.interval, len(deltas))


def mean_over_seeds(values: Sequence[float]) -> Estimate:
    """The mean of one number for each seed, with the interval of `paired_difference` from three seeds on."""
    mean, count = fmean(values), len(values)
    if count < MIN_SEEDS_FOR_INTERVAL:
        return Estimate(mean)
    half_width = student_t_two_sided(0.95, count - 1) * stdev(values) / math.sqrt(count)
    return Estimate(mean, (mean - half_width, mean + half_width))


def has_grid(result: ComparisonResult) -> bool:
    """Whether a scheme was tried at several learning rates."""
    placements = [point.placement for point in result.grid]
    return len(set(placements)) < len(placements)


def summarize_step(
    runs: Sequence[StepRun], quantities: Sequence[Quantity], baseline: str | None
) -> list[QuantitySummary]:
    """Mean and spread over seeds of each quantity for each scheme, and the paired difference to the baseline.

    Schemes and quantities keep their order. A run without a value is left out; a scheme that has none has no summary.

    Args:
        runs: of one step.
        quantities: that it measured.
        baseline: the placement that differences are taken to; None: there are none.
    """
    values: dict[tuple[str, str], dict[int, float]] = {}
    for run in runs:
        for name, value in run.values.items():
            values.setdefault((run.placement, name), {})[run.seed] = value
    found: list[QuantitySummary] = []
    for placement in dict.fromkeys(run.placement for run in runs):
        for quantity in quantities:
            own = values.get((placement, quantity.name))
            if not own:
                continue
            base = {} if baseline in (None, placement) else values.get((baseline, quantity.name), {})
            deltas = [value - base[seed] for seed, value in own.items() if seed in base]
            found.append(
                QuantitySummary(
                    placement,
                    quantity.name,
                    len(own),
                    fmean(own.values()),
                    stdev(own.values()) if len(own) > 1 else None,
                    _without_rounding(mean_over_seeds(deltas)) if deltas else None,
                )
            )
    return found


def summarize_values(
    runs: Sequence[RunResult],
    summaries: Sequence[SchemeSummary],
    quantities: Sequence[Quantity],
    baseline: str | None,
) -> list[QuantitySummary]:
    """What quantities beside the loss come to, for each scheme at its best learning rate; as `summarize_step`.

    A scheme with a run that is no better than the constants has no difference, nor has any scheme to it.
    """
    best = {summary.placement: summary for summary in summaries}
    chosen = [
        StepRun(run.placement, run.seed, run.learning_rate, {name: one.value for name, one in run.values.items()})
        for run in runs
        if run.learning_rate == best[run.placement].learning_rate
    ]
    told = {placement for placement, summary in best.items() if not summary.without_order}
    return [
        one if {one.placement, baseline} <= told else replace(one, difference=None)
        for one in summarize_step(chosen, quantities, baseline)
    ]


def step_changes(before: StepResult, after: StepResult) -> list[QuantityChange]:
    """What has become of each quantity of each scheme between two steps, paired by seed.

    Args:
        before: the earlier step.
        after: the later step, which has measured the same.
    """
    then = {(run.placement, run.seed): run.values for run in before.runs}
    found: list[QuantityChange] = []
    for placement in dict.fromkeys(run.placement for run in after.runs):
        for quantity in after.quantities:
            pairs = [
                (then[placement, run.seed][quantity.name], run.values[quantity.name])
                for run in after.runs
                if run.placement == placement
                and quantity.name in run.values
                and quantity.name in then.get((placement, run.seed), {})
            ]
            if pairs:
                change = _without_rounding(mean_over_seeds([later - earlier for earlier, later in pairs]))
                earlier, later = (fmean(values) for values in zip(*pairs, strict=True))
                found.append(QuantityChange(placement, quantity.name, len(pairs), earlier, later, change))
    return found


def _without_rounding(found: Estimate) -> Estimate:
    """A difference without what binary fractions add to it: 0, not 2e-17."""
    low_high = None if found.interval is None else (round(found.interval[0], 12), round(found.interval[1], 12))
    return Estimate(round(found.value, 12), low_high)


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
        without_order=sum(not run.has_learned for run in runs),
    )


def _mean(values: Collection[float]) -> float | None:
    return fmean(values) if values else None
