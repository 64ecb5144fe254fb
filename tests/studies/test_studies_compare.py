from __future__ import annotations

import copy
import json
import math
import os
import signal
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import replace
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from mixln import MixLNLlamaForCausalLM, schemes
from mixln.data import Batch, PreparedData, training_batch
from mixln.errors import InputError
from mixln.report import ComparisonResult, from_json, to_json
from mixln.report.aggregate import depth_of
from mixln.report.headline import headline
from mixln.report.statistics import best_summary
from mixln.studies.compare import Job, compare, plan_jobs, shown_names
from mixln.tasks import Recipe, build_model
from mixln.training import differences

FOUR = ["pre", "post", "mix(alpha=0.5)", "lns"]


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("comparison")


@pytest.fixture(scope="session")
def result(recipe: Recipe, data: PreparedData, folder: Path) -> ComparisonResult:
    return compare(recipe, FOUR, data, folder, seeds=[0, 1])


def test_every_scheme_is_trained_with_every_seed_and_measured(result: ComparisonResult, recipe: Recipe) -> None:
    assert [(run.placement, run.seed) for run in result.runs] == [(scheme, seed) for scheme in FOUR for seed in (0, 1)]
    layers = recipe.model.num_hidden_layers
    for run in result.runs:
        assert run.depth is not None
        assert len(run.depth["gradient_norm_at_init"].values) == len(run.depth["removal"].values) == layers
        assert len(run.depth["variance"].values) == layers + 1
        distances = run.depth["angular_distance"].triangle()
        assert [len(row) for row in distances] == list(range(layers, 0, -1))
        assert all(0 <= distance <= 1 for row in distances for distance in row)
        assert run.validation_loss is not None
        assert run.validation_loss < run.train_curve[0].loss
        assert [point.step for point in run.train_curve] == list(range(1, recipe.steps + 1))
    assert result.baseline == "pre"


def test_every_run_is_compared_with_token_frequencies(result: ComparisonResult) -> None:
    """A dozen steps teach less than frequencies: such schemes are not ranked, and their layers not shown."""
    constants = result.constants
    assert constants is not None
    assert constants.counted_tokens == constants.train_tokens
    assert constants.token_pairs < constants.token_frequencies
    for run in result.runs:
        assert run.validation_loss is not None
        assert run.over_token_frequencies is not None
        difference = run.validation_loss - constants.token_frequencies
        assert run.over_token_frequencies.value == pytest.approx(difference, abs=1e-5)
        assert difference > 0
        assert not run.has_learned
    for summary in result.summaries:
        assert (summary.without_order, summary.difference) == (2, None)
    assert best_summary(result.summaries) is None
    assert not depth_of(result)
    assert "No scheme has learned word order" in headline(result)


def test_results_of_an_older_version_are_measured_again_and_not_trained(
    recipe: Recipe, data: PreparedData, tmp_path: Path
) -> None:
    (run,) = compare(recipe, ["pre"], data, tmp_path).runs
    (path,) = tmp_path.glob("runs/*/result.json")
    old = json.loads(path.read_text()) | {"schema_version": 2}
    del old["over_token_frequencies"]
    path.write_text(json.dumps(old))
    steps: list[int] = []
    (again,) = compare(recipe, ["pre"], data, tmp_path, report_run=lambda *_: lambda step, *_: steps.append(step)).runs
    assert again == run
    assert steps == []


def test_what_each_layer_does_is_measured_by_its_definition(
    result: ComparisonResult, recipe: Recipe, data: PreparedData, folder: Path
) -> None:
    """In plain code, on the trained model of one run; the gradients on the model that it began with."""
    (run,) = (one for one in result.runs if (one.placement, one.seed) == ("pre", 0))
    assert run.depth is not None
    (path,) = folder.glob("runs/pre_*_seed0_*/model")
    model = MixLNLlamaForCausalLM.from_pretrained(path, dtype=torch.float32).eval()
    rows = data.validation.batch(np.arange(min(32, len(data.validation))))

    def loss(model: MixLNLlamaForCausalLM, rows: Batch) -> torch.Tensor:
        logits = model(input_ids=rows.input_ids, position_ids=rows.position_ids, use_cache=False).logits
        return nn.functional.cross_entropy(logits.flatten(0, 1).double(), rows.targets.flatten())

    states: list[torch.Tensor] = []
    with ExitStack() as hooks, torch.no_grad():
        for block in model.model.layers:
            hooks.enter_context(block.register_forward_pre_hook(lambda _, args: states.append(args[0].double())))
        hooks.enter_context(model.model.norm.register_forward_pre_hook(lambda _, args: states.append(args[0].double())))
        whole = loss(model, rows).item()
    counted = rows.targets != -100
    variances = [state[counted].var(-1, correction=0).mean().item() for state in states]
    assert run.depth["variance"].values == pytest.approx(variances, rel=1e-5)
    for n, row in enumerate(run.depth["angular_distance"].triangle(), start=1):
        for first, distance in enumerate(row):
            cosines = nn.functional.cosine_similarity(states[first][counted], states[first + n][counted], dim=-1)
            assert distance == pytest.approx(cosines.clamp(-1, 1).arccos().mean().item() / math.pi, abs=1e-6)
    for layer, increase in enumerate(run.depth["removal"].values):
        shorter = copy.deepcopy(model)
        del shorter.model.layers[layer]
        with torch.no_grad():
            assert increase == pytest.approx(loss(shorter, rows).item() - whole, abs=1e-5)
    fresh = build_model(replace(recipe, seed=0), data.tokenizer).eval()
    assert isinstance(fresh, MixLNLlamaForCausalLM)
    loss(fresh, training_batch(data.train, 0, min(recipe.batch_size, 32), 0)).backward()
    for block, norm in zip(fresh.model.layers, run.depth["gradient_norm_at_init"].values, strict=True):
        gradients = [parameter.grad for parameter in block.parameters()]
        squares = sum(gradient.square().sum().item() for gradient in gradients if gradient is not None)
        assert norm == pytest.approx(math.sqrt(squares), rel=1e-4)


def test_compared_runs_differ_in_the_placement_and_nothing_else(result: ComparisonResult, folder: Path) -> None:
    """The resolved configurations in the results, and the files of the runs."""
    for one, other in combinations([run for run in result.runs if run.seed == 0], 2):
        assert list(differences(one.config, other.config)) == [
            f"model.placement was {one.placement}, is {other.placement}"
        ]
    recipes = [json.loads(path.read_text()) for path in sorted(folder.glob("runs/*_seed0_*/recipe.json"))]
    assert len(recipes) == len(FOUR)
    for one, other in combinations(recipes, 2):
        assert len(list(differences(one, other))) == 1
    models = [json.loads(path.read_text()) for path in sorted(folder.glob("runs/*_seed0_*/model/config.json"))]
    for one, other in combinations(models, 2):
        assert {line.split(" was ")[0] for line in differences(one, other)} <= {
            "placement",
            "initializer_range",
            "own_initializer_range",
        }


def test_common_parameters_start_from_the_same_draws(recipe: Recipe, data: PreparedData) -> None:
    models = {
        scheme: build_model(replace(recipe, model=replace(recipe.model, placement=scheme)), data.tokenizer)
        for scheme in schemes()
    }
    reference = dict(models["pre"].named_parameters())
    for model in models.values():
        for name, parameter in model.named_parameters():
            if parameter.ndim == 2:
                ratio = parameter.detach() / reference[name].detach()
                torch.testing.assert_close(ratio, ratio.mean().expand_as(ratio), rtol=1e-4, atol=0)


def test_a_finished_run_is_not_repeated(
    result: ComparisonResult, recipe: Recipe, data: PreparedData, folder: Path
) -> None:
    started: list[Job] = []

    def report_run(number: int, count: int, job: Job) -> None:
        assert 0 <= number < count
        started.append(job)

    again = compare(recipe, [*FOUR, "deepnorm"], data, folder, seeds=[0, 1], report_run=report_run)
    assert [(job.recipe.model.placement, job.recipe.seed) for job in started] == [("deepnorm", 0), ("deepnorm", 1)]
    assert again.runs[: len(result.runs)] == result.runs


@pytest.mark.slow
def test_an_interrupted_comparison_goes_on_where_it_was(recipe: Recipe, data: PreparedData, tmp_path: Path) -> None:
    whole = compare(recipe, ["pre", "mix"], data, tmp_path / "whole")
    trained: list[tuple[str, int]] = []

    def watch(stop_at: tuple[str, int] | None) -> Callable[[int, int, Job], Callable[[int, float, float], None]]:
        def report_run(number: int, count: int, job: Job) -> Callable[[int, float, float], None]:
            assert number < count

            def report_step(step: int, *_: float) -> None:
                trained.append((job.recipe.model.placement, step))
                if (job.recipe.model.placement, step) == stop_at:
                    os.kill(os.getpid(), signal.SIGINT)

            return report_step

        return report_run

    with pytest.raises(KeyboardInterrupt):
        compare(recipe, ["pre", "mix"], data, tmp_path / "cut", report_run=watch(("mix(alpha=0.25)", 5)))
    trained.clear()
    resumed = compare(recipe, ["pre", "mix"], data, tmp_path / "cut", report_run=watch(None))
    assert trained == [("mix(alpha=0.25)", step) for step in range(6, recipe.steps + 1)]
    for one, other in zip(whole.runs, resumed.runs, strict=True):
        assert (one.validation_loss, one.train_curve, one.depth) == (
            other.validation_loss,
            other.train_curve,
            other.depth,
        )


@pytest.mark.slow
def test_each_scheme_is_judged_at_its_own_best_learning_rate(
    recipe: Recipe, data: PreparedData, tmp_path: Path
) -> None:
    result = compare(recipe, ["pre", "post"], data, tmp_path, learning_rates=[1e-5, 5e-3])
    assert [(point.placement, point.learning_rate) for point in result.grid] == [
        ("pre", 1e-5),
        ("pre", 5e-3),
        ("post", 1e-5),
        ("post", 5e-3),
    ]
    for summary in result.summaries:
        losses = {point.loss_mean: point.learning_rate for point in result.grid if point.placement == summary.placement}
        assert summary.learning_rate == losses[min(loss for loss in losses if loss is not None)] == 5e-3


@pytest.mark.slow
def test_other_seeds_run_at_the_rate_that_was_best_with_the_first(
    recipe: Recipe, data: PreparedData, tmp_path: Path
) -> None:
    short, rates = replace(recipe, steps=6), [1e-5, 5e-3]
    result = compare(short, ["pre", "lns"], data, tmp_path, seeds=[3, 4], learning_rates=rates, tune_on_first_seed=True)
    runs = {(run.placement, run.seed, run.learning_rate) for run in result.runs}
    assert runs == {(one, 3, rate) for one in ("pre", "lns") for rate in rates} | {
        (one, 4, 5e-3) for one in ("pre", "lns")
    }
    assert [(summary.learning_rate, summary.seeds) for summary in result.summaries] == [(5e-3, 2), (5e-3, 2)]


def test_a_diverged_run_is_a_result_and_is_not_repeated(recipe: Recipe, data: PreparedData, tmp_path: Path) -> None:
    reckless = replace(recipe, optimizer=replace(recipe.optimizer, max_grad_norm=0.0))
    for _ in range(2):
        result = compare(reckless, ["pre"], data, tmp_path, learning_rates=[1e30])
        (run,) = result.runs
        assert (run.diverged, run.validation_loss, run.depth) == (True, None, None)
        assert from_json(to_json(result)).summaries[0].diverged == 1


def test_other_settings_and_other_data_are_other_runs(recipe: Recipe, tmp_path: Path) -> None:
    def folders(recipe: Recipe, fingerprint: str = "a") -> set[Path]:
        return {job.folder for job in plan_jobs(recipe, ["pre", "mix"], fingerprint, tmp_path, [0], None)}

    base = folders(recipe)
    assert folders(recipe) == base
    assert not base & folders(replace(recipe, steps=13))
    assert not base & folders(recipe, "b")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"schemes": []}, "`schemes` is empty"),
        ({"schemes": ["mix", "mix(alpha=0.25)"]}, "same value twice"),
        ({"seeds": [1, 1]}, "`seeds` has the same value twice"),
        ({"learning_rates": [-1.0]}, "learning_rate must be more than 0"),
        ({"schemes": ["pre", "mix(post_layers=5)"]}, "post_layers=5, but the model has 4 layers"),
    ],
)
def test_a_request_that_makes_no_sense_is_refused_before_the_first_run(
    recipe: Recipe, tmp_path: Path, arguments: dict[str, list[str]], message: str
) -> None:
    given = {"schemes": ["pre"], "seeds": [0], "learning_rates": None, **arguments}
    with pytest.raises(InputError, match=message):
        plan_jobs(recipe, given["schemes"], "", tmp_path, given["seeds"], given["learning_rates"])


def test_names_are_one_for_each_scheme() -> None:
    assert shown_names(["pre", "mix"], ["a", "b"]) == {"pre": "a", "mix(alpha=0.25)": "b"}
    assert shown_names(["pre"], None) == {}
    with pytest.raises(InputError, match="`names` has 1 entries, but there are 2 schemes: give one for each"):
        shown_names(["pre", "mix"], ["a"])
    with pytest.raises(InputError, match="`names` has the same name twice"):
        shown_names(["pre", "mix"], ["a", "a"])


@pytest.mark.slow
def test_the_batch_size_of_validation_changes_no_result(recipe: Recipe, data: PreparedData, tmp_path: Path) -> None:
    (one,) = compare(replace(recipe, evaluation_batch_size=1), ["lns"], data, tmp_path).runs
    (five,) = compare(replace(recipe, evaluation_batch_size=5), ["lns"], data, tmp_path).runs
    assert one.validation_loss == pytest.approx(five.validation_loss, rel=1e-5)
    assert one.depth is not None
    assert five.depth is not None
    for name, rel, abs_ in (("variance", 1e-5, 0.0), ("removal", 1e-3, 1e-5)):
        assert one.depth[name].values == pytest.approx(five.depth[name].values, rel=rel, abs=abs_)


def test_a_damaged_result_is_named(recipe: Recipe, data: PreparedData, tmp_path: Path) -> None:
    compare(recipe, ["pre"], data, tmp_path)
    (path,) = tmp_path.glob("runs/*/result.json")
    path.write_text(path.read_text()[:100])
    with pytest.raises(InputError, match=r"result\.json cannot be read.*Delete"):
        compare(recipe, ["pre"], data, tmp_path)
