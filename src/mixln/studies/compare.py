"""Training several placements under equal conditions, and measuring what each does with its depth."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import chain, product, zip_longest
from pathlib import Path
from typing import Any

from mixln.announce import announce
from mixln.data import PreparedData
from mixln.device import default_device
from mixln.errors import InputError
from mixln.models import PlacedConfig, PlacedPreTrainedModel
from mixln.models.anatomy import find_block_stack
from mixln.placement import Placement
from mixln.report import CurvePoint, RunResult, from_json, summarize, to_json
from mixln.report.comparison import Comparison
from mixln.report.statistics import has_diverged, summarize_values
from mixln.signatures import checked_arguments
from mixln.storage import write_file
from mixln.studies.compared_images import ComparedImages
from mixln.studies.compared_kinds import Baseline, ComparedKind
from mixln.studies.compared_language import ComparedLanguage
from mixln.studies.comparison_facts import shared_facts
from mixln.studies.machine import describe_machine
from mixln.studies.measures import gradient_norm_at_init, growth, removal, similarity
from mixln.studies.measuring import Found, Given, observe_all
from mixln.studies.stages import ReportStage
from mixln.tasks.build import materialize
from mixln.tasks.kinds import AnyRecipe, RecipeKind, kind_of
from mixln.tasks.prepared_images import PreparedImages
from mixln.training import Precision, TrainedModel, TrainingDivergedError, read_metrics, train
from mixln.training.decisions import agree_on_precision
from mixln.training.distributed import started_processes
from mixln.version import __version__

RESULT_FILE = "result.json"

_KINDS: Mapping[RecipeKind, ComparedKind] = {one.kind: one for one in (ComparedLanguage(), ComparedImages())}


@dataclass(frozen=True)
class Job:
    """One run of a comparison: its recipe, and the folder that is its own."""

    recipe: AnyRecipe
    folder: Path

    @property
    def label(self) -> str:
        """Scheme, seed and learning rate, for progress lines."""
        recipe = self.recipe
        return f"{recipe.model.placement}, seed {recipe.seed}, learning rate {recipe.optimizer.learning_rate:g}"


ReportRun = Callable[[int, int, Job], Callable[[int, float, float], None] | None]
"""Called before every run with (number from 0, number of runs, job); what it returns is called after every step."""


@checked_arguments
def compare(
    recipe: AnyRecipe,
    schemes: Sequence[str],
    data: PreparedData | PreparedImages,
    folder: str | Path,
    *,
    seeds: Sequence[int] = (0,),
    learning_rates: Sequence[float] | None = None,
    learning_rate_of: Mapping[str, float] | None = None,
    tune_on_first_seed: bool = False,
    baseline: str = "pre",
    names: Sequence[str] | None = None,
    command: str = "",
    report_run: ReportRun | None = None,
    report_stage: ReportStage | None = None,
) -> Comparison:
    """Train every scheme with every seed and learning rate, and return all results.

    The runs differ in the placement (and the seed and learning rate) and in nothing else: data and their order,
    schedule, clipping, and the initial draws of all parameters that they have in common are the same. Each run has a
    folder below `folder/runs`. Calling this again repeats no finished run, and resumes the interrupted one.

    Args:
        recipe: what all runs share.
        schemes: text forms of the placements, in the order to report them.
        data: what `mixln.tasks.kinds` prepares for the recipe.
        folder: of the comparison.
        seeds: one run each.
        learning_rates: a grid of peaks; each scheme is judged at its own best. None: the recipe's.
        tune_on_first_seed: run the whole grid of learning rates with the first seed only, and the other seeds at the
            rate that was best with it.
        baseline: the placement that differences are taken to, if it is among the schemes.
        names: of the schemes in the report, one for each; None: their text forms.
        command: the command line, for the report.
        report_run: progress; see `ReportRun`.
        report_stage: progress of what is measured of a run.

    Raises:
        PlacementError: a scheme is not one.
        InputError: the recipe does not make sense, or a folder cannot be written or holds something else.
    """
    folder = Path(folder)
    jobs = plan_jobs(recipe, schemes, data.fingerprint, folder, seeds, learning_rates, learning_rate_of)
    shown = shown_names(schemes, names)
    compared = _KINDS[kind_of(recipe)]
    frequencies = compared.baseline(data)
    precision = _common_precision(recipe, folder)
    runs: list[RunResult] = []
    for number, job in enumerate(jobs):
        if tune_on_first_seed and job.recipe.seed != seeds[0] and not _is_at_best_rate(job, runs):
            continue
        result = _read_result(compared, job)
        if result is None:
            report_step = None if report_run is None else report_run(number, len(jobs), job)
            result = _run_job(compared, job, data, frequencies, report_step, precision, report_stage)
            write_file(job.folder / RESULT_FILE, to_json(result))
        else:
            announce(("finished", f"{job.label}: already, at step {recipe.last_step}; nothing to do"))
        runs.append(replace(result, folder=job.folder.relative_to(folder).as_posix()))
    placements = list(dict.fromkeys(run.placement for run in runs))
    # summaries come in the order of the schemes, whatever the order of the runs
    runs.sort(key=lambda run: placements.index(run.placement))
    canonical = str(Placement.parse(baseline))
    baseline_or_none = canonical if canonical in placements else None
    summaries, grid = summarize(runs, baseline_or_none)
    quantities = [one for one in compared.quantities if any(one.name in run.values for run in runs)]
    stored: dict[str, Any] = {compared.constants_field: frequencies.constants}
    return Comparison(
        baseline=baseline_or_none,
        runs=runs,
        summaries=summaries,
        grid=grid,
        facts=shared_facts(compared, recipe, runs, data, precision, frequencies),
        machine=describe_machine(),
        command=command,
        version=__version__,
        depth_figures=compared.depth_figures(),
        notes=[f"`{run.placement}`, seed {run.seed}: {note}" for run in runs for note in run.notes],
        names=shown,
        quantities=quantities,
        values=summarize_values(runs, summaries, quantities, baseline_or_none),
        terms=compared.terms,
        **stored,
    )


def shown_names(schemes: Sequence[str], names: Sequence[str] | None) -> dict[str, str]:
    """Return the names that schemes are shown by, by their text forms.

    Raises:
        PlacementError: a scheme is not one.
        InputError: the names are not one for each scheme, or not different.
    """
    if names is None:
        return {}
    placements = [str(Placement.parse(scheme)) for scheme in schemes]
    if len(names) != len(placements):
        raise InputError(
            f"`names` has {len(names)} entries, but there are {len(placements)} schemes: give one for each"
        )
    if len(set(names)) < len(names):
        raise InputError("`names` has the same name twice: give each scheme its own")
    return dict(zip(placements, names, strict=True))


def _is_at_best_rate(job: Job, runs: Sequence[RunResult]) -> bool:
    """Whether a run is at the learning rate that was best for its placement in the runs of the first seed."""
    own = [run for run in runs if run.placement == job.recipe.model.placement]
    (summary,) = summarize([run for run in own if run.seed == own[0].seed], None)[0]
    return job.recipe.optimizer.learning_rate == summary.learning_rate


@checked_arguments
def plan_jobs(
    recipe: AnyRecipe,
    schemes: Sequence[str],
    fingerprint: str,
    folder: str | Path,
    seeds: Sequence[int],
    learning_rates: Sequence[float] | None,
    learning_rate_of: Mapping[str, float] | None = None,
) -> list[Job]:
    """Return the runs of a comparison, all checked before the first one starts.

    A run's folder bears a hash of its recipe and of the data's fingerprint: other settings are other folders.

    Raises:
        PlacementError, InputError: as `compare`.
    """
    placements = [str(Placement.parse(scheme)) for scheme in schemes]
    rates = learning_rates or [recipe.optimizer.learning_rate]
    for what, values in (("schemes", placements), ("seeds", list(seeds)), ("learning_rates", list(rates))):
        if not values:
            raise InputError(f"`{what}` is empty: give at least one")
        if len(set(values)) < len(values):
            raise InputError(f"`{what}` has the same value twice: {', '.join(map(str, values))}")
    own_rates = {str(Placement.parse(scheme)): rate for scheme, rate in (learning_rate_of or {}).items()}
    if missing := [scheme for scheme in own_rates if scheme not in placements]:
        raise InputError(
            f"`learning_rate_of` names {missing[0]}, which is not compared. Compared are {', '.join(placements)}"
        )
    rates_of = {placement: [own_rates[placement]] if placement in own_rates else rates for placement in placements}
    rounds = zip_longest(*([(placement, rate) for rate in own] for placement, own in rates_of.items()))
    jobs: list[Job] = []
    # all schemes with the first seed come first, so that a comparison cut short still compares
    for seed, (placement, rate) in product(seeds, filter(None, chain.from_iterable(rounds))):
        own = _with_run(recipe, placement, rate, seed)
        kind_of(own).check(own)
        key = {name: value for name, value in own.to_dict().items() if name != "execution"}
        digest = hashlib.sha256((json.dumps(key, sort_keys=True) + fingerprint).encode()).hexdigest()
        slug = re.sub(r"[^a-z0-9.]+", "-", placement).strip("-")
        jobs.append(Job(own, Path(folder) / "runs" / f"{slug}_lr{rate:g}_seed{seed}_{digest[:8]}"))
    return jobs


def _with_run(recipe: Any, placement: str, rate: float, seed: int) -> AnyRecipe:
    return replace(
        recipe,
        seed=seed,
        model=replace(recipe.model, placement=placement),
        optimizer=replace(recipe.optimizer, learning_rate=rate),
    )


def _read_result(compared: ComparedKind, job: Job) -> RunResult | None:
    """The result of a finished run; None: the run is not finished, or has to be measured again.

    An older version did not compare with token frequencies; its trained model is still there.
    """
    path = job.folder / RESULT_FILE
    if not path.exists():
        return None
    try:
        result = from_json(path.read_text(encoding="utf-8"), RunResult)
        return result if compared.is_measured(result) or has_diverged(result) else None
    except (InputError, OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path} cannot be read ({error}). Delete {job.folder} to train this run anew") from error


def _common_precision(recipe: AnyRecipe, folder: Path) -> Precision:
    """The precision of all runs of a comparison; it stays when the comparison is resumed, also on another machine."""
    with started_processes(recipe.execution) as processes:
        vectors = recipe.rows_of_a_forward(processes.data_count) * kind_of(recipe).positions(recipe)
        sizes = recipe.model.hidden_size, recipe.model.intermediate_size, vectors
        return agree_on_precision(recipe.precision, sizes, folder, processes)


def _run_job(
    compared: ComparedKind,
    job: Job,
    data: PreparedData | PreparedImages,
    frequencies: Baseline,
    report_step: Callable[[int, float, float], None] | None,
    precision: Precision,
    report_stage: ReportStage | None,
) -> RunResult:
    """Train one model and measure it, before training and after."""
    recipe, kind = job.recipe, compared.kind
    task = kind.task(recipe, data)
    fresh, at_init = _fresh_model(compared, task)
    config = fresh.config
    assert isinstance(config, PlacedConfig)
    num_parameters = sum(parameter.numel() for parameter in fresh.parameters())
    del fresh
    try:
        trained: TrainedModel | None = train(task, job.folder, report_step, precision=precision)
    except TrainingDivergedError:
        trained = None
    measured, found = None, {"validation_loss": None, "perplexity": None}
    if trained is not None:
        measured = _measure(compared, task, trained, precision, report_stage)
        found = compared.validation_fields(trained.validation)
        found |= frequencies.over(trained.model, recipe.evaluation_batch_size, precision.autocast_dtype)
    lines = read_metrics(job.folder)
    tokens, seconds = int(lines[-1][kind.unit]) if lines else 0, sum(line["seconds"] for line in lines)
    return RunResult(
        placement=recipe.model.placement,
        seed=recipe.seed,
        learning_rate=recipe.optimizer.learning_rate,
        embedding_std=config.initial_embedding_std,
        num_hidden_layers=recipe.model.num_hidden_layers,
        num_parameters=num_parameters,
        train_tokens=tokens,
        train_curve=_curve(lines, "loss", kind.unit),
        validation_curve=_curve(lines, "validation_loss", kind.unit),
        diverged=trained is None,
        seconds=seconds,
        tokens_per_second=tokens / seconds if seconds else 0.0,
        depth=None if measured is None else {series.name: series for series in at_init.series + measured.series},
        config=recipe.to_dict(),
        notes=[] if measured is None else measured.notes,
        **found,
        **compared.curve_fields(lines),
    )


def _fresh_model(compared: ComparedKind, task: Any) -> tuple[PlacedPreTrainedModel, Found]:
    """Return the model that training begins with, and the gradient norm of each of its layers."""
    device = default_device()
    model = materialize(task.build(), task.config.seed, device)
    task.adapt(
        task.objective(model, device, compiled=False),
        lambda: model(**compared.first_batch(task)),
        lambda moments: moments,
    )
    given = Given(find_block_stack(model), compared.performance)
    return model, gradient_norm_at_init.ENTRY.of(given.stack, compared.gradient_batches(task), given, intervals=False)


def _measure(
    compared: ComparedKind, task: Any, trained: TrainedModel, precision: Precision, report: ReportStage | None
) -> Found:
    stack, dtype = find_block_stack(trained.model), precision.autocast_dtype
    given = Given(stack, compared.performance, autocast_dtype=dtype, report=report)
    entries = [similarity.ENTRY, growth.ENTRY, removal.ENTRY]
    return observe_all(entries, given, compared.measured_batches(task), "measuring its layers")


def _curve(lines: Sequence[dict[str, float]], key: str, unit: str) -> list[CurvePoint]:
    return [CurvePoint(int(line["step"]), int(line[unit]), line[key]) for line in lines if line.get(key) is not None]
