"""What a comparison says, in sentences that claim no more than its numbers do.

Scheme labels stand in backticks; pages turn these into code.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from mixln.report import cells
from mixln.report.results import ComparisonResult, SchemeSummary
from mixln.report.series import LEAST_BELOW_FREQUENCIES, Estimate
from mixln.report.statistics import MIN_SEEDS_FOR_INTERVAL, best_summary, has_grid, is_told


def headline(result: ComparisonResult) -> str:
    """The main finding in one sentence. A difference whose interval holds zero "cannot be told"."""
    best = best_summary(result.summaries)
    if best is None:
        if any(summary.loss_mean is not None for summary in result.summaries):
            return f"No scheme has {result.terms.learned}, so there is nothing to rank: {_rule(result)}."
        return "Every run diverged, so there is no validation loss to compare."
    beside = (
        f"perplexity {cells.perplexity(best.perplexity_mean)}" if result.terms.has_perplexity else _values(result, best)
    )
    reached = f"{cells.number(best.loss_mean)} {result.terms.loss} ({beside})"
    if len(result.summaries) == 1:
        return f"`{best.placement}` reaches a validation loss of {reached}{_over_seeds(best)}."
    lowest = f"has the lowest mean validation loss{_among(result, best)}, {reached}"
    if result.baseline is None:
        return f"`{best.placement}` {lowest}."
    if best.placement == result.baseline:
        if is_told(result):
            return f"The baseline `{best.placement}` {lowest}: every other scheme is distinguishably worse."
        return (
            f"Which scheme is best cannot be told: the baseline `{best.placement}` {lowest}, but not every other "
            "scheme is distinguishably worse."
        )
    told = f"`{best.placement}` {lowest}{_against_baseline(best, result.baseline)}"
    if is_told(result):
        return f"{told}."
    if best.difference is None:
        return f"{told}; the baseline `{result.baseline}` is not ranked."
    return (
        f"Whether `{best.placement}` is better than the baseline `{result.baseline}` cannot be told: it "
        f"{lowest}{_against_baseline(best, result.baseline)}."
    )


def _values(result: ComparisonResult, summary: SchemeSummary) -> str:
    """The other quantities of a scheme, which are shares: `top-1 65.32 %, top-5 96.10 %`."""
    found = {one: result.value_of(summary.placement, one.name) for one in result.quantities}
    return ", ".join(f"{one.label or one.name} {cells.percent(v.mean)} %" for one, v in found.items() if v is not None)


def findings(result: ComparisonResult) -> list[str]:
    """What else has to be said to read the numbers rightly: which differences count, what diverged, what is unknown."""
    return [*_without_order(result), *_distinguishable(result), *_caution(result), *_diverged(result.summaries)]


def _rule(result: ComparisonResult) -> str:
    """When a run counts as one that has learned, with the loss that it must beat."""
    constants, terms = result.to_beat, result.terms
    loss = "" if constants is None else f" ({cells.number(next(iter(constants.losses.values())))} {terms.loss})"
    return (
        f"a run has {terms.learned} if its loss is more than {LEAST_BELOW_FREQUENCIES} below that of {terms.constant} "
        f"alone{loss} at the upper end of the 95 % interval over {terms.documents}{terms.otherwise}"
    )


def _without_order(result: ComparisonResult) -> list[str]:
    parts = [
        f"`{summary.placement}` ({summary.without_order} of {summary.seeds})"
        for summary in result.summaries
        if summary.without_order
    ]
    if not parts:
        return []
    return [
        f"Runs that have not {result.terms.learned}: {', '.join(parts)}. {_rule(result).capitalize()}. These schemes "
        f"are not ranked, and what the layers of these runs do is not shown, since it says nothing. "
        f"{result.terms.advice}"
    ]


def _among(result: ComparisonResult, best: SchemeSummary) -> str:
    left_out: list[str] = []
    if not best.diverged and any(summary.diverged for summary in result.summaries):
        left_out.append("without a diverged run")
    if any(summary.without_order for summary in result.summaries):
        left_out.append(f"that have {result.terms.learned}")
    return f" among the schemes {' and '.join(left_out)}" if left_out else ""


def _over_seeds(summary: SchemeSummary) -> str:
    count = summary.seeds - summary.diverged
    return f" over {count} seeds" if count > 1 else " with one seed"


def _against_baseline(best: SchemeSummary, baseline: str) -> str:
    change = best.difference
    if change is None:
        return ""
    size = f"{abs(change.mean):.3f} {'below' if change.mean < 0 else 'above'} `{baseline}`"
    if change.interval is None:
        seeds = "one seed" if change.seeds == 1 else f"{change.seeds} seeds"
        return f", {size}, on {seeds}; an interval needs {MIN_SEEDS_FOR_INTERVAL} seeds"
    low, high = change.interval
    bounds = f"95 % confidence interval {low:+.3f} to {high:+.3f}"
    holds = ", which holds zero" if change.estimate.holds_zero else ""
    return f", {size} over {change.seeds} seeds ({bounds}{holds})"


def _distinguishable(result: ComparisonResult) -> list[str]:
    differences = {one.placement: one.difference.estimate for one in result.summaries if one.difference is not None}
    told = {"": _told(differences, higher_is_better=False)}
    for quantity in result.quantities[:1]:
        own = {one.placement: one.difference for one in result.values if one.quantity == quantity.name}
        found = {placement: one for placement, one in own.items() if one is not None}
        label = quantity.label or quantity.name
        told[f"{label[0].upper()}{label[1:]} a"] = _told(found, higher_is_better=quantity.higher_is_better)
    sentences: list[str] = []
    for what, groups in told.items():
        intervals = sum(map(len, groups.values()))
        if intervals < (1 if what else 2):
            continue
        parts = [f"{name}: {', '.join(labels)}" for name, labels in groups.items() if labels]
        sentence = f"{what or 'A'}gainst the baseline `{result.baseline}`: {'; '.join(parts)}."
        if intervals > 1:
            sentence += (
                f" These are {intervals} separate 95 % intervals, not corrected for their number: the more schemes, "
                "the likelier one of them stands out by chance."
            )
        sentences.append(sentence)
    return sentences


def _told(differences: Mapping[str, Estimate], *, higher_is_better: bool) -> dict[str, list[str]]:
    """Schemes by what their differences to the baseline say; those without an interval are left out."""
    groups: dict[str, list[str]] = {"better": [], "worse": [], "cannot be told": []}
    for placement, change in differences.items():
        if change.interval is not None:
            is_better = (change.value > 0) == higher_is_better
            group = "cannot be told" if change.holds_zero else "better" if is_better else "worse"
            groups[group].append(f"`{placement}`")
    return groups


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
    if has_grid(result):
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
