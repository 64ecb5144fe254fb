"""What was done with the models of a comparison after they were trained, as plain data: fine-tuned, evaluated.

Every step has the same form, whatever it does: numbers of each run, what they come to over seeds, and the constants
that they must beat. So one table and one section of the page show any of them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from mixln.report.series import Estimate


@dataclass(frozen=True)
class Quantity:
    """A number that a step measures of each run, or that a comparison does beside the loss.

    Attributes:
        name: by which the values of a run have it.
        unit: of the number.
        higher_is_better: else lower is.
        label: of its column; empty: the name.
    """

    name: str
    unit: str
    higher_is_better: bool
    label: str = ""


@dataclass(frozen=True)
class StepRun:
    """One run in a step.

    Attributes:
        placement: its scheme.
        seed: of the run, and of the step.
        learning_rate: that the run was trained at before.
        values: by the names of the quantities; without those that could not be measured.
        remark: what is the matter with it; empty: nothing.
    """

    placement: str
    seed: int
    learning_rate: float
    values: dict[str, float] = field(default_factory=dict)
    remark: str = ""

    def is_of(self, placement: str, seed: int, learning_rate: float) -> bool:
        """Whether it is this run."""
        return (self.placement, self.seed, self.learning_rate) == (placement, seed, learning_rate)


@dataclass(frozen=True)
class QuantitySummary:
    """A quantity of a scheme, over seeds.

    Attributes:
        placement: the scheme.
        quantity: its name.
        seeds: that it was measured with.
        mean: over them.
        deviation: sample standard deviation over them; None: there is one seed.
        difference: to the baseline, paired by seed, with the 95 % interval over seeds from three on; None: it is the
            baseline, or there is none with the same seeds.
        marked: whether it has the step's `mark`.
    """

    placement: str
    quantity: str
    seeds: int
    mean: float
    deviation: float | None
    difference: Estimate | None
    marked: bool = False


@dataclass(frozen=True)
class QuantityChange:
    """A quantity of a scheme in an earlier step and in a later one, over the seeds that both have.

    Attributes:
        placement: the scheme.
        quantity: its name.
        seeds: that both were measured with.
        before: mean in the earlier step.
        after: mean in the later step.
        change: mean of the changes of the seeds, with the 95 % interval over seeds from three on.
    """

    placement: str
    quantity: str
    seeds: int
    before: float
    after: float
    change: Estimate


@dataclass(frozen=True)
class StepConstant:
    """What must be beaten: values by the names of the quantities, without those that it does not have."""

    name: str
    values: dict[str, float]


@dataclass(frozen=True)
class StepResult:
    """One step over all runs.

    Attributes:
        step: as it was asked for: `finetune=rows.jsonl --epochs 3`.
        title: what it did, for headings.
        quantities: that it measured, in the order of the columns.
        runs: in the order of the comparison.
        summaries: of each scheme and quantity.
        constants: rows below the schemes.
        mark: what a star in the table means; empty: there is none.
        verdicts: what the numbers can be told from, a sentence each.
        facts: label and text, of what all runs of the step share.
        since: title of the earlier step that has measured the same; empty: there is none.
        changes: since then.
        links: files and folders with more, relative to the comparison's, by what they are called.
    """

    step: str
    title: str
    quantities: list[Quantity]
    runs: list[StepRun]
    summaries: list[QuantitySummary]
    constants: list[StepConstant] = field(default_factory=list)
    mark: str = ""
    verdicts: list[str] = field(default_factory=list)
    facts: dict[str, str] = field(default_factory=dict)
    links: dict[str, str] = field(default_factory=dict)
    since: str = ""
    changes: list[QuantityChange] = field(default_factory=list)

    @property
    def remarks(self) -> list[str]:
        """What is the matter with runs, a sentence for each matter."""
        seeds_of: dict[str, dict[str, list[int]]] = {}
        for run in self.runs:
            if run.remark:
                seeds_of.setdefault(run.remark, {}).setdefault(run.placement, []).append(run.seed)
        found: list[str] = []
        for remark, of_scheme in seeds_of.items():
            runs = [f"`{placement}`, {words_of_seeds(seeds)}" for placement, seeds in of_scheme.items()]
            found.append(f"{'; '.join(runs)}: {remark}.")
        return found

    def summary_of(self, placement: str, quantity: str) -> QuantitySummary | None:
        """What a quantity of a scheme comes to; None: it was not measured."""
        return next((one for one in self.summaries if (one.placement, one.quantity) == (placement, quantity)), None)


def words_of_seeds(seeds: Sequence[int]) -> str:
    """Seeds in words: `seed 0`, `seeds 0, 1`."""
    return f"seed{'s' * (len(seeds) > 1)} {', '.join(map(str, seeds))}"
