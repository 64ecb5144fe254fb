"""What a comparison says, in sentences that claim no more than its numbers do.

Scheme labels stand in backticks; pages turn these into code.
"""

from __future__ import annotations

from collections.abc import Sequence

from mixln.report import cells
from mixln.report.results import ComparisonResult, SchemeSummary
from mixln.report.statistics import MIN_SEEDS_FOR_INTERVAL, best_summary


def headline(result: ComparisonResult) -> str:
    """The main finding in one sentence."""
    best = best_summary(result.summaries)
    if best is None:
        return "Every run diverged, so there is no validation loss to compare."
    reached = f"{cells.number(best.loss_mean)} nats per token (perplexity {cells.perplexity(best.perplexity_mean)})"
    if len(result.summaries) == 1:
        return f"`{best.placement}` reaches a validation loss of {reached}{_over_seeds(best)}."
    among = (
        " among the schemes without a diverged run"
        if not best.diverged and any(summary.diverged for summary in result.summaries)
        else ""
    )
    sentence = f"`{best.placement}` has the lowest mean validation loss{among}, {reached}"
    if best.placement == result.baseline:
        return f"{sentence}: no scheme improves on this baseline."
    return f"{sentence}{_against_baseline(best, result.baseline)}."


def findings(result: ComparisonResult) -> list[str]:
    """What else has to be said to read the numbers rightly: which differences count, what diverged, what is unknown."""
    return [*_distinguishable(result), *_caution(result), *_diverged(result.summaries)]


def _over_seeds(summary: SchemeSummary) -> str:
    count = summary.seeds - summary.diverged
    return f" over {count} seeds" if count > 1 else " with one seed"


def _against_baseline(best: SchemeSummary, baseline: str | None) -> str:
    change = best.difference
    if baseline is None or change is None:
        return ""
    size = f"{abs(change.mean):.3f} {'below' if change.mean < 0 else 'above'} the baseline `{baseline}`"
    if change.interval is None:
        seeds = "one seed" if change.seeds == 1 else f"{change.seeds} seeds"
        return f", {size} on {seeds}, too few to tell whether the difference is more than noise"
    low, high = change.interval
    bounds = f"95 % confidence interval {low:+.3f} to {high:+.3f}"
    if low <= 0 <= high:
        return f", {size}, but not distinguishably so over {change.seeds} seeds ({bounds} includes 0)"
    return f", distinguishably {size} over {change.seeds} seeds ({bounds})"


def _distinguishable(result: ComparisonResult) -> list[str]:
    groups: dict[str, list[str]] = {"better": [], "worse": [], "not distinguishable": []}
    for summary in result.summaries:
        if summary.difference is not None and summary.difference.interval is not None:
            low, high = summary.difference.interval
            group = "better" if high < 0 else "worse" if low > 0 else "not distinguishable"
            groups[group].append(f"`{summary.placement}`")
    intervals = sum(map(len, groups.values()))
    if intervals < 2:
        return []
    parts = [f"{name}: {', '.join(labels)}" for name, labels in groups.items() if labels]
    return [
        f"Against the baseline `{result.baseline}`: {'; '.join(parts)}. "
        f"These are {intervals} separate 95 % intervals, not corrected for their number: "
        "the more schemes, the likelier one of them stands out by chance."
    ]


def _caution(result: ComparisonResult) -> list[str]:
    finished = [summary.seeds - summary.diverged for summary in result.summaries if summary.loss_mean is not None]
    if not finished:
        return []
    notes: list[str] = []
    if len(finished) > 1 and min(finished) < MIN_SEEDS_FOR_INTERVAL:
        which = "With" if max(finished) < MIN_SEEDS_FOR_INTERVAL else "Some schemes have"
        joint = "," if which == "With" else ":"
        notes.append(
            f"{which} fewer than {MIN_SEEDS_FOR_INTERVAL} seeds{joint} the spread between seeds is unknown, "
            "and the order may be noise."
        )
    elif len(finished) > 1 and result.baseline is None:
        notes.append("No baseline was named, so no difference was tested: read the losses against their spread.")
    if len(cells.learning_rates(result)) > 1:
        notes.append(
            "Each scheme is judged at its own best learning rate, chosen on the same validation set: "
            "all means are a little too good."
        )
    return notes


def _diverged(summaries: Sequence[SchemeSummary]) -> list[str]:
    parts = [
        f"`{summary.placement}` ({'all' if summary.diverged == summary.seeds else summary.diverged} of {summary.seeds})"
        for summary in summaries
        if summary.diverged
    ]
    if not parts:
        return []
    survivors = any(0 < summary.diverged < summary.seeds for summary in summaries)
    bias = " Their means are over the runs that survived, and so too good." if survivors else ""
    return [f"Runs that diverged at the best learning rate: {', '.join(parts)}.{bias}"]
