"""`mixln compare`."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from jsonargparse import ArgumentParser, Namespace
from rich.console import Console

from mixln.commands.arguments import Command, add_recipe, cache_folder, claim_output, command_parser, recipe_from
from mixln.data import prepare_data
from mixln.device import is_main_process
from mixln.errors import InputError
from mixln.placement import Placement
from mixln.progress import TrainingProgress
from mixln.report import grid_table, summary_table, write_report
from mixln.studies import Job, compare, plan_jobs

_QUICK_STEPS = 64


def build_parser() -> ArgumentParser:
    """Return the parser of `mixln compare`."""
    parser = command_parser(
        "Train several placements under equal conditions and report loss and the use of depth. Finished runs are kept: "
        "the same command goes on where it was interrupted.",
        "mixln compare --schemes pre mix 'mix(alpha=0.5)' --seeds 0 1 2 --tokens 1000000 --out runs/alpha",
    )
    parser.add_argument(
        "--schemes", nargs="+", type=str, default=["pre", "post", "mix", "lns"], help="placements to compare"
    )
    parser.add_argument(
        "--seeds", nargs="+", type=int, default=None, help="one run of every scheme for each; default: the recipe's"
    )
    parser.add_argument(
        "--learning-rates",
        nargs="+",
        type=float,
        default=None,
        help="grid of peak learning rates; each scheme is judged at its own best; default: the recipe's",
    )
    parser.add_argument(
        "--tune-on-first-seed",
        action="store_true",
        help="run the grid of learning rates with the first seed alone, and the other seeds at the best rate of it",
    )
    parser.add_argument(
        "--baseline", type=str, default=None, help="the scheme that differences are taken to; default: pre, if compared"
    )
    parser.add_argument(
        "--tokens",
        type=int,
        default=None,
        help=f"token slots to train each run on; sets --steps, which is {_QUICK_STEPS} without a recipe",
    )
    parser.add_argument("--out", type=str, default="runs/compare", help="folder for runs and report")
    add_recipe(parser)
    # so that without arguments it ends within minutes on two cores
    parser.set_defaults(steps=_QUICK_STEPS)
    return parser


def run(given: Namespace, command: str) -> int:
    """Run `mixln compare`."""
    recipe = recipe_from(given, build_parser())
    if given.tokens is not None:
        if given.tokens < 1:
            raise InputError(f"--tokens must be at least 1, not {given.tokens}")
        recipe = replace(recipe, steps=math.ceil(given.tokens / max(1, recipe.tokens_per_step)))
    out, seeds = Path(given.out), [recipe.seed] if given.seeds is None else given.seeds
    # everything that can be wrong with the request is found before any work is done
    jobs = plan_jobs(recipe, given.schemes, "", out, seeds, given.learning_rates)
    baseline = str(Placement.parse(given.baseline or "pre"))
    if given.baseline is not None and baseline not in {job.recipe.model.placement for job in jobs}:
        raise InputError(f"--baseline {given.baseline} is not among the --schemes: add it, or choose one of them")
    claim_output(out)
    with TrainingProgress(recipe.last_step, len(jobs)) as progress:
        data = prepare_data(recipe.data, cache_folder(given), progress.report)

        def report_run(number: int, count: int, job: Job) -> Callable[[int, float, float], None]:
            progress.start_run(number, f"[{number + 1}/{count}] {job.label}")
            return progress.step

        result = compare(
            recipe,
            given.schemes,
            data,
            out,
            seeds=seeds,
            learning_rates=given.learning_rates,
            tune_on_first_seed=given.tune_on_first_seed,
            baseline=baseline,
            command=command,
            report_run=report_run,
        )
    if not is_main_process():
        return 0
    page = write_report(result, out)
    console = Console()
    console.print(summary_table(result))
    if (grid := grid_table(result)) is not None:
        console.print(grid)
    console.print(f"Report: {page}", highlight=False, soft_wrap=True)
    return 0


COMMAND = Command(
    "compare", "train several schemes on the same data and seeds; table, figures, HTML report", build_parser, run
)
