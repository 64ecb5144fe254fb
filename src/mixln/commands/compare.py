"""`mixln compare`."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Unpack

from mixln.commands.arguments import claim_output
from mixln.commands.settings import RecipeFields, settled_recipe
from mixln.errors import InputError
from mixln.signatures import checked_arguments
from mixln.tasks.recipe import Recipe

if TYPE_CHECKING:
    from mixln.report.comparison import Comparison
    from mixln.studies.compare import Job

_QUICK = Recipe(steps=64)
"""So that without arguments it ends within minutes on two cores."""


def _steps_of_tokens(tokens: int, arguments: Mapping[str, Any]) -> int:
    if tokens < 1:
        raise InputError(f"`tokens` must be at least 1, not {tokens}")
    return math.ceil(tokens / max(1, arguments["batch_size"] * arguments["data.sequence_length"]))


@checked_arguments
def compare(
    *,
    schemes: Sequence[str] = ("pre", "post", "mix", "lns"),
    seeds: Sequence[int] | None = None,
    learning_rates: Sequence[float] | None = None,
    tune_on_first_seed: bool = False,
    baseline: str | None = None,
    tokens: Annotated[int | None, {"sets": ("steps", _steps_of_tokens)}] = None,
    out: str | Path = "runs/compare",
    recipe: Recipe | str | Path = _QUICK,
    cache: str | Path | None = None,
    command_line: str = "",
    progress: bool = False,
    **changes: Unpack[RecipeFields],
) -> Comparison:
    """Train several placements under equal conditions and report loss and the use of depth. Finished runs are kept: the
    same command goes on where it was interrupted.

    Example:
        mixln compare --schemes pre mix 'mix(alpha=0.5)' --seeds 0 1 2 --tokens 1000000 --out runs/alpha

    Args:
        schemes: placements to compare.
        seeds: one run of every scheme for each; default: the recipe's.
        learning_rates: grid of peak learning rates; each scheme is judged at its own best; default: the recipe's.
        tune_on_first_seed: run the grid of learning rates with the first seed alone, and the other seeds at the best
            rate of it.
        baseline: the scheme that differences are taken to; default: pre, if compared.
        tokens: token slots to train each run on; sets --steps, which is 64 without a recipe.
        out: folder for runs and report.
        recipe: what all runs share: a recipe, the name of a shipped one, or a YAML file.
        cache: folder for tokenised data; default: ~/.cache/mixln.
        command_line: how it was asked for, for the report.
        progress: show on standard error how far it is.
        **changes: fields of the recipe that differ, as for `train`.

    Returns:
        The comparison: all runs, what they come to, and its page; its table has a row for each run.

    Raises:
        PlacementError: a scheme is not one.
        InputError: the recipe cannot be used, or the folder holds something else.
    """
    from mixln.data.prepare import prepare_data
    from mixln.device import is_main_process
    from mixln.placement import Placement
    from mixln.progress import TrainingProgress
    from mixln.studies.compare import compare as compare_schemes
    from mixln.studies.compare import plan_jobs

    changes |= {} if tokens is None else {"tokens": tokens}
    recipe, out = settled_recipe(recipe, changes), Path(out)
    seeds = [recipe.seed] if seeds is None else seeds
    # everything that can be wrong with the request is found before any work is done
    jobs = plan_jobs(recipe, schemes, "", out, seeds, learning_rates)
    chosen = str(Placement.parse(baseline or "pre"))
    if baseline is not None and chosen not in {job.recipe.model.placement for job in jobs}:
        raise InputError(f"`baseline={baseline}` is not among the `schemes`: add it, or choose one of them")
    claim_output(out)
    with TrainingProgress(recipe.last_step, len(jobs), shown=progress) as shown:
        data = prepare_data(recipe.data, cache, shown.report)

        def report_run(number: int, count: int, job: Job) -> Callable[[int, float, float], None]:
            shown.start_run(number, f"[{number + 1}/{count}] {job.label}")
            return shown.step

        result = compare_schemes(
            recipe,
            schemes,
            data,
            out,
            seeds=seeds,
            learning_rates=learning_rates,
            tune_on_first_seed=tune_on_first_seed,
            baseline=chosen,
            command=command_line,
            report_run=report_run,
        )
    if is_main_process():
        result.save(out)
    return result
