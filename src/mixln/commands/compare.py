"""`mixln compare`."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Unpack

from mixln.announce import announce
from mixln.chosen_device import on_device
from mixln.commands.arguments import claim_output
from mixln.commands.fields import RunFields
from mixln.commands.settings import settled_recipe
from mixln.commands.start import announce_recipe
from mixln.commands.steps import read_step, written_step
from mixln.errors import InputError
from mixln.interruption import keeping
from mixln.signatures import checked_arguments
from mixln.tasks.image_config import ImageTrainingConfig
from mixln.tasks.kinds import kind_of
from mixln.tasks.recipe import Recipe
from mixln.written import written_float

if TYPE_CHECKING:
    from mixln.report.comparison import Comparison
    from mixln.studies.compare import Job


@checked_arguments
@on_device
def compare(
    *,
    schemes: Sequence[str] = ("pre", "post", "mix", "lns"),
    names: Sequence[str] | None = None,
    seeds: Sequence[int] | None = None,
    learning_rates: Sequence[float] | None = None,
    learning_rate_of: Annotated[
        Mapping[str, float] | Sequence[str] | None, {"as": Sequence[str], "metavar": "RATE ..."}
    ] = None,
    tune_on_first_seed: bool = False,
    baseline: str | None = None,
    then: Annotated[
        Sequence[str | Mapping[str, Any]], {"as": Sequence[str], "metavar": "STEP", "repeatable": True}
    ] = (),
    out: str | Path = "runs/compare",
    recipe: Annotated[Recipe | ImageTrainingConfig | str | Path, {"skip": ["model.placement"]}] = "pico",
    device: str | None = None,
    cache: str | Path | None = None,
    command_line: str = "",
    progress: bool = False,
    **changes: Unpack[RunFields],
) -> Comparison:
    """Train several placements under equal conditions and report loss, of images accuracy too, and the use of depth.
    Finished runs are kept: the same command goes on where it was interrupted.

    Example:
        mixln compare --schemes pre mix 'mix(alpha=0.5)' --seeds 0 1 2 --tokens 1M --out runs/alpha

    Args:
        schemes: The placements to compare.
        names: Names of the schemes in the report, one for each. Default: the placements as they are written.
        seeds: One run of every scheme is made for each seed. Default: the recipe's seed and the next one.
        learning_rates: Peak learning rates to try. Each scheme is judged at its own best one. Default: the recipe's.
        learning_rate_of: The rate of a scheme that is run at this one alone, as pre=1e-3 'mix(alpha=0.5)=2e-3'. The
            others are run at `learning_rates`. In Python also a mapping.
        tune_on_first_seed: Try the learning rates with the first seed alone, and run the other seeds at the best rate.
        baseline: The scheme that differences are taken to. Default: pre, if it is compared.
        then: A step that follows: `evaluate=TASK,TASK`, or in quotes `finetune=DATA --epochs 3`. It goes on with the
            models of each scheme's best rate, with the seed of each run, and has the options of `mixln finetune` or
            `mixln evaluate`. It can be given again: a step goes on with what the last one made. In Python also a
            mapping, {"finetune": DATA, "epochs": 3}.
        out: The folder for the runs and the report.
        recipe: What all runs share: a recipe, the name of a shipped one, or a YAML file. Default: pico.
        device: Such as cpu, cuda or cuda:1. Default: the GPU, if any.
        cache: The folder for tokenised data. Default: ~/.cache/mixln.
        command_line: How it was asked for, for the report.
        progress: Show on standard error how far it is.
        **changes: Fields of the recipe that differ, as for `train`, such as `tokens`, `images` or `hidden_size`.

    Returns:
        The comparison: all runs, what they come to, and its page; its table has a row for each run.

    Raises:
        PlacementError: a scheme is not one.
        InputError: the recipe or a step cannot be used, or the folder holds something else.
    """
    del device  # `on_device` has chosen it
    recipe, out = settled_recipe(recipe, changes), Path(out)
    kind = kind_of(recipe)
    if then and not kind.takes_steps:
        raise InputError(f"`then` goes on with language models, and this recipe trains {kind.one}: leave it out")
    seeds = [recipe.seed, recipe.seed + 1] if seeds is None else seeds
    makers = [read_step(one) for one in then]  # what is written wrongly is said at once
    rates_of = _rates_of(learning_rate_of)
    num_rates = len(learning_rates or [recipe.optimizer.learning_rate])
    runs_of_a_seed = (len(schemes) - len(rates_of)) * num_rates + len(rates_of)
    announce_recipe(recipe, out, cache, schemes, runs_of_a_seed * len(seeds))
    announce(*(("then", written_step(one)) for one in then))
    from mixln.device import is_main_process
    from mixln.placement import Placement
    from mixln.progress import TrainingProgress
    from mixln.report.serialize import RESULTS_FILE, to_json
    from mixln.storage import write_file
    from mixln.studies.compare import RESULT_FILE, plan_jobs, shown_names
    from mixln.studies.compare import compare as compare_schemes
    from mixln.studies.steps.follow import follow, prepare_steps

    # everything that can be wrong with the request is found before any work is done
    jobs = plan_jobs(recipe, schemes, "", out, seeds, learning_rates, rates_of)
    shown_names(schemes, names)
    chosen = str(Placement.parse(baseline or "pre"))
    if baseline is not None and chosen not in {job.recipe.model.placement for job in jobs}:
        raise InputError(f"`baseline={baseline}` is not among the `schemes`: add it, or choose one of them")
    claim_output(out)
    steps = [make() for make in makers]

    def kept() -> str:
        finished = len(list(out.glob(f"runs/*/{RESULT_FILE}")))
        what = " and what the steps after them have finished" if steps else ""
        return f"{finished} finished runs{what} are kept in {out}. Run the same command again to go on"

    with keeping(kept), ExitStack() as training:
        shown = training.enter_context(TrainingProgress(recipe.last_step, len(jobs), shown=progress, unit=kind.unit))
        data = training.enter_context(kind.prepare(recipe, cache, shown.report, shown.stage))
        jobs = plan_jobs(recipe, schemes, data.fingerprint, out, seeds, learning_rates, rates_of)
        prepare_steps(steps, jobs[0], data)

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
            learning_rate_of=rates_of,
            tune_on_first_seed=tune_on_first_seed,
            baseline=chosen,
            names=names,
            command=command_line,
            report_run=report_run,
            report_stage=shown.stage,
        )
        training.close()  # its bar ends here
        if is_main_process():
            result.save(out)
        for followed in follow(result, jobs, steps, out, shown=progress):
            result = followed
            write_file(out / RESULTS_FILE, to_json(result))  # all figures take seconds
        if steps:
            result.save(out)
    return result


def _rates_of(given: Mapping[str, float] | Sequence[str] | None) -> dict[str, float]:
    """The learning rates of single schemes, as they were given in Python or on the command line."""
    if isinstance(given, Mapping):
        return dict(given)
    found: dict[str, float] = {}
    for one in given or ():
        scheme, _, written = one.rpartition("=")
        rate = written_float(written)
        if not scheme or rate is None:
            raise InputError(f"`learning_rate_of` has {one!r}: write a scheme and its rate, as pre=1e-3")
        if scheme in found:
            raise InputError(
                f"`learning_rate_of` has {scheme} twice: give it one rate, or all of them `learning_rates`"
            )
        found[scheme] = rate
    return found
