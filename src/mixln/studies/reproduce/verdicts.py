"""What came of a table: its cells beside the published ones, and what can be said of each claim."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from statistics import stdev

from mixln.report.reproduction import AGREES, DISAGREES, NOT_RUN, UNKNOWN, ReproducedCell, ReproducedClaim
from mixln.report.results import RunResult
from mixln.report.series import Estimate
from mixln.report.statistics import MIN_SEEDS_FOR_INTERVAL, has_diverged, mean_over_seeds
from mixln.studies.reproduce.quantities import Quantity, quantity
from mixln.studies.reproduce.runs import Cell, TableRuns
from mixln.studies.reproduce.specification import Claim

Results = Mapping[Cell, Sequence[RunResult]]


def cells_of(table: TableRuns, results: Results) -> list[ReproducedCell]:
    """Return every cell beside the published number, with its difference to the baseline.

    The difference is paired by seed, each row at its own best learning rate. It agrees with the paper if its interval
    lies on the side of zero on which the published difference is.
    """
    specification = table.specification
    shown = quantity(specification.quantity)
    found: list[ReproducedCell] = []
    for cell in table.cells:
        runs = results[cell]
        published = specification.row(cell.row).published
        values = [value for run in runs if (value := shown.of(run)) is not None]
        difference, published_difference, verdict, why = None, None, "", ""
        if specification.baseline and cell.row != specification.baseline:
            base = results[Cell(specification.baseline, cell.column, cell.variant)]
            published_difference = _published_difference(
                shown, published.get(cell.column), specification.row(specification.baseline).published.get(cell.column)
            )
            difference, verdict, why = compare_runs(shown, runs, base)
            if published_difference is not None and verdict == "":
                verdict, why = _side(difference, published_difference)
        found.append(
            ReproducedCell(
                row=cell.row,
                column=cell.column,
                variant=cell.variant,
                published=published.get(cell.column),
                measured=mean_over_seeds(values) if values else None,
                spread=stdev(values) if len(values) > 1 else None,
                seeds=len(runs),
                learning_rate=runs[0].learning_rate if runs else None,
                has_learned=all(map(_has_learned, runs)),
                published_difference=published_difference,
                difference=difference,
                verdict=verdict,
                why=why,
                folders=table.folders(cell),
            )
        )
    return found


def claims_of(table: TableRuns, results: Results) -> list[ReproducedClaim]:
    """Return what can be said of each claim, in each column and under each variant."""
    specification = table.specification
    return [
        _test(claim, quantity(claim.quantity or specification.quantity), results, column.name, variant.name)
        for claim in specification.claims
        for variant in specification.variants_at(table.scale)
        for column in specification.columns_at(table.scale)
        if not claim.columns or column.name in claim.columns
    ]


def compare_runs(
    of: Quantity, runs: Sequence[RunResult], others: Sequence[RunResult]
) -> tuple[Estimate | None, str, str]:
    """Return the mean of a quantity of some runs less that of others, paired by seed; and why it cannot be judged.

    Returns:
        The difference, if there is one; a verdict, if there can be none on its sign, else an empty text; and why.
    """
    if not runs or not others:
        return None, NOT_RUN, "a run of it, or of what it is compared with, is not finished"
    base = {run.seed: of.compare(run) for run in others}
    deltas = [
        value - other
        for run in runs
        if (value := of.compare(run)) is not None and (other := base.get(run.seed)) is not None
    ]
    difference = mean_over_seeds(deltas) if deltas else None
    for group in (runs, others):
        failed = [run.seed for run in group if not _has_learned(run)]
        if failed:
            where = "at any of its learning rates" if len(failed) == len(group) else f"with seed {_listed(failed)}"
            return difference, UNKNOWN, f"{group[0].placement} has not learned more than the frequencies {where}"
    if difference is None:
        return None, UNKNOWN, "no seed has the quantity on both sides"
    return difference, "", ""


def _has_learned(run: RunResult) -> bool:
    """Whether a run has learned more than constants. One that diverged has not: the others would be a selection."""
    return run.has_learned and not has_diverged(run)


def _listed(seeds: Sequence[int]) -> str:
    return " and ".join(map(str, seeds))


def _side(difference: Estimate | None, wanted: float) -> tuple[str, str]:
    """What a difference says of one whose sign is wanted."""
    assert difference is not None
    if wanted == 0:
        return UNKNOWN, "the published numbers are equal"
    if difference.interval is None:
        return UNKNOWN, f"an interval takes {MIN_SEEDS_FOR_INTERVAL} seeds"
    if difference.holds_zero:
        return UNKNOWN, "the interval holds zero"
    return (AGREES, "") if (difference.value > 0) == (wanted > 0) else (DISAGREES, "")


def _published_difference(of: Quantity, value: float | None, base: float | None) -> float | None:
    return None if value is None or base is None else of.from_published(value) - of.from_published(base)


def _test(claim: Claim, of: Quantity, results: Results, column: str, variant: str) -> ReproducedClaim:
    condition = ", ".join(filter(None, (column, variant)))
    if claim.does_not_learn:
        verdict, why = _learns(claim.does_not_learn, results, column, variant)
        return ReproducedClaim(claim.says, condition, verdict, why, "", None)
    steps: list[tuple[str, str]] = []
    estimates: list[Estimate | None] = []
    for lower, higher in pairwise(claim.lower):
        runs, others = (results[Cell(name, column, variant)] for name in (lower, higher))
        difference, verdict, why = compare_runs(of, runs, others)
        if not verdict:
            verdict, why = _side(difference, -1.0)
        steps.append((verdict, f"{lower} against {higher}: {why}" if why else ""))
        estimates.append(difference)
    verdict = _together([one for one, _ in steps])
    why = "; ".join(why for _, why in steps if why)
    return ReproducedClaim(
        claim.says, condition, verdict, why, of.difference_title, estimates[0] if len(estimates) == 1 else None
    )


def _learns(rows: Sequence[str], results: Results, column: str, variant: str) -> tuple[str, str]:
    verdicts: list[str] = []
    for row in rows:
        runs = results[Cell(row, column, variant)]
        learned = [_has_learned(run) for run in runs]
        verdicts.append(NOT_RUN if not runs else DISAGREES if all(learned) else AGREES if not any(learned) else UNKNOWN)
    verdict = _together(verdicts)
    why = {
        DISAGREES: "it learns at one of the learning rates that were tried here",
        UNKNOWN: "it learns with some of the seeds",
        NOT_RUN: "no run of it is finished",
    }
    return verdict, why.get(verdict, "")


def _together(verdicts: Sequence[str]) -> str:
    """The verdict on a claim of several parts, all of which must hold."""
    for one in (DISAGREES, NOT_RUN, UNKNOWN):
        if one in verdicts:
            return one
    return AGREES
