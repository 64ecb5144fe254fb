"""`mixln reproduce`."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from mixln.announce import announce
from mixln.chosen_device import on_device
from mixln.commands.arguments import claim_output
from mixln.errors import InputError
from mixln.interruption import keeping
from mixln.signatures import checked_arguments

if TYPE_CHECKING:
    from mixln.report.reproduction_list import ListedTables, PlannedRuns
    from mixln.report.reproduction_report import ReproductionReport
    from mixln.studies.reproduce.runs import Run
    from mixln.studies.reproduce.specification import Scale, Specification
    from mixln.studies.reproduce.table import Table


@checked_arguments
@on_device
def reproduce(
    names: Annotated[str | Sequence[str], {"as": Sequence[str], "metavar": "TABLE"}] = (),
    *,
    list: bool = False,
    scale: Literal["nano", "small", "paper"] = "nano",
    report: bool = False,
    plan: Annotated[str | None, {"metavar": "DEVICE"}] = None,
    text: str | Path | None = None,
    validation_text: str | Path | None = None,
    images: str | Path | None = None,
    stop_after: int | None = None,
    out: str | Path = "runs/reproduce",
    device: str | None = None,
    cache: str | Path | None = None,
    command_line: str = "",
    progress: bool = False,
) -> ReproductionReport | ListedTables | PlannedRuns:
    """Make tables and figures of the papers, at the scale of this machine, and put the published numbers beside the
    measured ones, with a verdict on each claim. Tables share their runs. An interrupted command goes on when it is run
    again; several processes with one `out`, on one machine or many, share the runs that are left.

    Example:
        mixln reproduce mix-ln/alpha --text books/ --out runs/reproduce

    Args:
        names: Names of tables, as mix-ln/alpha, or YAML files of your own like those that ship. Default: list all.
        list: List what there is, and what has come of it in `out`.
        scale: The size of the runs. nano is for a processor, small for one GPU and a day, paper what was published.
        report: Put what lies in `out` into one page, reproduction.html, and make no runs.
        plan: List the runs, with the hours that each takes on this device, such as cpu or h100, and make none.
        text: What language models are trained on, instead of the text of the table's recipes.
        validation_text: What they are validated on. Default: documents that are split off.
        images: What classifiers of images are trained on.
        stop_after: End each run after so many steps of its schedule, to see that it starts. No claim is judged then.
        out: The folder of all tables and their runs.
        device: Such as cpu, cuda or cuda:1. Default: the GPU, if any.
        cache: The folder for tokenised data. Default: ~/.cache/mixln.
        command_line: How it was asked for, for the record.
        progress: Show on standard error how far it is.

    Returns:
        The tables, published and measured; its table has a row for each cell. With `list` or `plan` what there is.

    Raises:
        PlacementError, InputError: there is no such table, it has no runs at this scale, or they cannot be made.
    """
    del device  # `on_device` has chosen it
    from mixln.studies.reproduce.specification import list_specifications, load_specification

    folder = Path(out)
    wanted = [names] if isinstance(names, str) else [*names]
    if len(set(wanted)) < len(wanted):
        raise InputError("a table is named twice: name each once")
    if stop_after is not None and stop_after < 1:
        raise InputError(f"`stop_after` must be at least 1, not {stop_after}")
    if not wanted and (plan is not None or stop_after is not None):
        raise InputError("`plan` and `stop_after` are about tables: name one, such as mix-ln/alpha")
    specifications = [load_specification(name) for name in wanted or list_specifications()]
    if repeated := [name for name, count in Counter(one.name for one in specifications).items() if count > 1]:
        raise InputError(f"two tables would be called {repeated[0]}: give their files different names")
    if report:
        if wanted:
            raise InputError("`report` makes one page of all tables in `out`: leave the names out")
        return _report(folder)
    if list or not wanted:
        return _listed(specifications, folder)
    changes = {"text": text, "validation_text": validation_text, "images": images}
    changes = {name: str(value) for name, value in changes.items() if value is not None}
    announce(("tables", ", ".join(wanted)), ("scale", scale), *changes.items(), ("folder", folder))
    claim_output(folder)
    if plan is not None:
        return _planned(specifications, scale, folder, plan, changes, stop_after, cache)
    return _made(specifications, scale, folder, changes, stop_after, cache, command_line, progress=progress)


def _listed(specifications: Sequence[Specification], folder: Path) -> ListedTables:
    from mixln.report.reproduction_list import ListedTable, ListedTables
    from mixln.studies.reproduce.specification import SCALES
    from mixln.studies.reproduce.stored import stored_tables

    stored = stored_tables(folder)
    return ListedTables(
        [
            ListedTable(
                one.name,
                one.title,
                one.paper,
                one.editions_in_words,
                [scale for scale in SCALES if one.columns_at(scale) and scale in one.conditions],
                [found.headline for found in stored if found.name == one.name],
            )
            for one in specifications
        ]
    )


def _report(folder: Path) -> ReproductionReport:
    from mixln.report.reproduction_report import ReproductionReport
    from mixln.studies.reproduce.stored import stored_tables

    tables = stored_tables(folder)
    if not tables:
        raise InputError(f"`out` {folder} holds no results of tables. Make some: mixln reproduce NAME --out {folder}")
    result = ReproductionReport(tables)
    result.save(folder)
    return result


def _planned(
    specifications: Sequence[Specification],
    scale: Scale,
    folder: Path,
    device: str,
    changes: dict[str, str],
    stop_after: int | None,
    cache: str | Path | None,
) -> PlannedRuns:
    from mixln.estimation.devices import device_names
    from mixln.estimation.run import estimate
    from mixln.placement.words import did_you_mean
    from mixln.report.reproduction_list import PlannedRuns
    from mixln.studies.reproduce.table import open_table

    known = device_names()
    if device not in known:
        raise InputError(f"`plan={device}`: no such device.{did_you_mean(device, known)} Known: {', '.join(known)}")
    # data is prepared only to see which runs are finished: a plan of the paper's runs needs no C4
    options = {"stop_after": stop_after, "cache": cache, "prepares": (folder / "runs").exists()}
    rows: dict[str, dict[str, Any]] = {}
    hours: dict[str, float] = {}
    for specification in specifications:
        with open_table(specification, scale, folder, changes=changes, **options) as table:
            for run in table.all_runs():
                recipe: Any = run.job.recipe
                key = repr(replace(recipe, seed=0, optimizer=replace(recipe.optimizer, learning_rate=1.0)))
                if key not in hours:
                    hours[key] = estimate(recipe, device, 1).time.hours
                rows.setdefault(
                    run.job.folder.name,
                    {
                        "table": specification.name,
                        "row": run.cell.row,
                        "column": run.cell.column,
                        "variant": run.cell.variant,
                        "learning_rate": recipe.optimizer.learning_rate,
                        "seed": recipe.seed,
                        "steps": recipe.last_step,
                        "hours": hours[key],
                        "state": "open" if run.result() is None else "finished",
                    },
                )
    return PlannedRuns([*rows.values()], device)


def _made(
    specifications: Sequence[Specification],
    scale: Scale,
    folder: Path,
    changes: dict[str, str],
    stop_after: int | None,
    cache: str | Path | None,
    command_line: str,
    *,
    progress: bool,
) -> ReproductionReport:
    from mixln.device import num_processes
    from mixln.progress import TrainingProgress, line_printer
    from mixln.report.reproduction import Reproduction
    from mixln.report.reproduction_page import write_reproduction_page
    from mixln.report.reproduction_report import ReproductionReport, write_table
    from mixln.studies.reproduce.stored import stored_tables
    from mixln.studies.reproduce.table import open_table, reproduced

    if num_processes() > 1:
        raise InputError(
            "the runs of a table are of one process each: start the command without torchrun, as often as you like, "
            "with the same `out`"
        )
    stored_tables(folder)  # one that cannot be read is said before the first run, not after the last
    say = line_printer(shown=progress)

    def kept() -> str:
        return (
            f"all finished runs are kept in {folder}, and the others from their last checkpoint. Run the command again"
        )

    tables: list[Reproduction] = []
    with keeping(kept), ExitStack() as stack:
        # all tables are checked before the first run
        opened = [
            stack.enter_context(
                open_table(one, scale, folder, changes=changes, stop_after=stop_after, cache=cache, report=say)
            )
            for one in specifications
        ]
        for table in opened:
            with TrainingProgress(table.longest(), len(table.all_runs()), shown=progress) as shown:
                _make(table, shown)
            found = reproduced(table, command=command_line, stopped_after=stop_after)
            write_table(found, folder)
            tables.append(found)
    result = ReproductionReport(tables)
    result.save(folder)
    write_reproduction_page(stored_tables(folder), folder)  # it shows all tables that lie there
    return result


def _make(table: Table, shown: Any) -> None:
    def start(run: Run) -> Any:
        shown.start_run(table.finished(), run.label)
        return shown.step

    def wait(runs: Sequence[Run]) -> None:
        announce(("waiting", f"other processes make what is left: {len(runs)}"))

    table.make(start, wait, shown.stage)
