"""Tables and sentences of the steps after a comparison; the same for every step."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from rich.table import Table
from rich.text import Text

from mixln.report import cells
from mixln.report.step_results import StepResult
from mixln.report.style import wrap_label
from mixln.report.tables import Cells, markdown, plain_table


def step_cells(step: StepResult) -> Cells:
    """A row for each scheme with mean and spread over seeds, then the constants: the form of table 4 of Mix-LN."""
    placements = list(dict.fromkeys(run.placement for run in step.runs))
    rows = [
        [placement, *(_value(step, placement, quantity.name) for quantity in step.quantities), _seeds(step, placement)]
        for placement in placements
    ]
    for constant in step.constants:
        values = [cells.number(constant.values.get(quantity.name)) for quantity in step.quantities]
        rows.append([constant.name, *values, ""])
    header = ["scheme", *(quantity.name for quantity in step.quantities), "seeds"]
    return Cells(header, rows, None, [set() for _ in rows], len(step.constants))


def difference_cells(step: StepResult, baseline: str | None) -> Cells | None:
    """The differences to the baseline, paired by seed; None if there are none."""
    rows: list[list[str]] = []
    for placement in dict.fromkeys(run.placement for run in step.runs):
        found = [step.summary_of(placement, quantity.name) for quantity in step.quantities]
        differences = [None if one is None else one.difference for one in found]
        if any(one is not None for one in differences):
            rows.append([placement, *(cells.MISSING if one is None else one.format("+.3f") for one in differences)])
    if baseline is None or not rows:
        return None
    header = ["scheme", *(quantity.name for quantity in step.quantities)]
    return Cells(header, rows, None, [set() for _ in rows])


def change_cells(step: StepResult) -> Cells | None:
    """What has become of the numbers since an earlier step that measured the same; None if there is none."""
    found = {(one.placement, one.quantity): one for one in step.changes}
    if not found:
        return None
    rows: list[list[str]] = []
    for placement in dict.fromkeys(one.placement for one in step.changes):
        own = [found.get((placement, quantity.name)) for quantity in step.quantities]
        rows.append(
            [
                placement,
                *(
                    cells.MISSING
                    if one is None
                    else f"{cells.number(one.before)} to {cells.number(one.after)}: {one.change.format('+.3f')}"
                    for one in own
                ),
            ]
        )
    return Cells(["scheme", *(quantity.name for quantity in step.quantities)], rows, None, [set() for _ in rows])


def change_caption(step: StepResult) -> str:
    """How to read the table of changes, in a line without a full stop."""
    return f"Since the step '{step.since}': before, after and the change, paired by seed [95 % interval over seeds]"


def step_caption(step: StepResult) -> str:
    """How to read the table, in a line without a full stop."""
    units: dict[str, list[str]] = {}
    for quantity in step.quantities:
        units.setdefault(quantity.unit, []).append(quantity.name)
    parts = [unit if len(units) == 1 else f"{', '.join(names)}: {unit}" for unit, names in units.items()]
    better = {quantity.higher_is_better for quantity in step.quantities}
    if len(better) == 1:
        parts.append("higher is better" if better.pop() else "lower is better")
    if any(one.deviation is not None for one in step.summaries):
        parts.append("± sample standard deviation over seeds")
    if step.mark and any(one.marked for one in step.summaries):
        parts.append(f"* {step.mark}")
    return "; ".join(parts)


def difference_caption(step: StepResult, baseline: str) -> str:
    """How to read the table of differences, in a line without a full stop."""
    has_interval = any(one.difference is not None and one.difference.interval is not None for one in step.summaries)
    interval = " [95 % interval over seeds]" if has_interval else "; an interval needs three seeds"
    return f"Scheme less `{baseline}`, paired by seed{interval}"


def step_findings(steps: Sequence[StepResult], number: int, baseline: str | None) -> list[str]:
    """What is the matter with runs, unless an earlier step says it, and which differences to the baseline count.

    Args:
        steps: of the comparison.
        number: which of them, from 0.
        baseline: the placement that differences are taken to, if any.
    """
    said = {remark for step in steps[:number] for remark in step.remarks}
    return [*(one for one in steps[number].remarks if one not in said), *_told(steps[number], baseline)]


def _told(step: StepResult, baseline: str | None) -> Iterator[str]:
    """Quantities of which the same is to be said share a sentence."""
    said: dict[str, list[str]] = {}
    count = 0
    for quantity in step.quantities:
        groups: dict[str, list[str]] = {"better": [], "worse": [], "cannot be told": []}
        for one in step.summaries:
            if one.quantity == quantity.name and one.difference is not None and one.difference.interval is not None:
                is_better = (one.difference.value > 0) == quantity.higher_is_better
                name = "cannot be told" if one.difference.holds_zero else "better" if is_better else "worse"
                groups[name].append(f"`{one.placement}`")
                count += 1
        parts = [f"{name}: {', '.join(labels)}" for name, labels in groups.items() if labels]
        if parts:
            said.setdefault("; ".join(parts), []).append(quantity.name)
    for sentence, names in said.items():
        yield f"{', '.join(names)} against the baseline `{baseline}`: {sentence}."
    if count > 1:
        yield (
            f"These are {count} separate 95 % intervals, not corrected for their number: the more there are, the "
            "likelier one of them stands out by chance."
        )


def step_tables(step: StepResult, baseline: str | None) -> Iterator[Table]:
    """The tables for the terminal."""
    yield _rich(step_cells(step), step.title, step_caption(step))
    if baseline is not None and (differences := difference_cells(step, baseline)) is not None:
        yield _rich(differences, f"{step.title}: differences", difference_caption(step, baseline))
    if (changes := change_cells(step)) is not None:
        yield _rich(changes, f"{step.title}: changes", change_caption(step))


def step_markdown(step: StepResult, baseline: str | None) -> str:
    """The tables as Markdown."""
    parts = [f"{step.title}:", markdown(step_cells(step)), f"{step_caption(step)}."]
    if baseline is not None and (differences := difference_cells(step, baseline)) is not None:
        parts += [markdown(differences), f"{difference_caption(step, baseline)}."]
    if (changes := change_cells(step)) is not None:
        parts += [markdown(changes), f"{change_caption(step)}."]
    return "\n\n".join(parts) + "\n"


def _value(step: StepResult, placement: str, quantity: str) -> str:
    found = step.summary_of(placement, quantity)
    if found is None:
        return cells.MISSING
    spread = "" if found.deviation is None else f" ± {cells.number(found.deviation)}"
    return f"{cells.number(found.mean)}{spread}{' *' if found.marked else ''}"


def _seeds(step: StepResult, placement: str) -> str:
    """How many runs there are, and of how many there are no numbers."""
    runs = [run for run in step.runs if run.placement == placement]
    without = sum(not run.values for run in runs)
    return f"{len(runs)}, {without} left out" if without else str(len(runs))


def _rich(content: Cells, title: str, caption: str) -> Table:
    table = plain_table(title, caption.replace("`", ""))
    for index, name in enumerate(content.header):
        table.add_column(Text(name), justify="right" if index else "left", overflow="fold")
    for row in content.rows:
        folded = [
            cell.replace(" ± ", "\n± ").replace(" [", "\n[").replace(", ", ",\n").replace(": ", ":\n")
            for cell in row[1:]
        ]
        table.add_row(*map(Text, [wrap_label(row[0], 24), *folded]))
    return table
