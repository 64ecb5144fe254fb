"""Steps that go wrong, against literal loops that leave them out."""

from __future__ import annotations

import copy
import json
import math
import os
import re
import signal
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import pytest
import torch
from torch import Tensor, nn

from mixln.data import PreparedData, training_batch, training_rows
from mixln.errors import InputError
from mixln.tasks import Recipe, build_model, pretrain
from mixln.tasks.objective import CausalLanguageModelObjective
from mixln.training import (
    ExecutionConfig,
    FaultConfig,
    TrainingDivergedError,
    TrainingWarning,
    learning_rate,
    read_metrics,
)
from mixln.training import run as run_module
from mixln.training.checkpoint import load_weights
from mixln.training.optimizer import build_optimizer
from mixln.training.run import build_objective
from mixln.training.saved_checkpoint import checkpoint_step, list_checkpoints

Kind = Literal["loss", "gradient", "spike"]
KINDS: list[Kind] = ["loss", "gradient", "spike"]
BAD_STEP = 8
BAD_LAYER = "model.layers.1.mlp.down_proj"
FOUND = {
    "loss": r"the training loss was nan in step 8 \(training rows [\d, ]+\), first seen in the output of "
    + re.escape(BAD_LAYER),
    "gradient": r"the gradient norm was (nan|inf) in step 8 \(training rows [\d, ]+\), first seen in the gradient of "
    "layer_02",
    "spike": r"the gradient norm was \d.* in step 8 \(training rows [\d, ]+\), first seen as a gradient of norm",
}
QUIET = ExecutionConfig(checkpoint_every=3, layer_metrics_every=0, trackers=())

# the warnings that the tests are not about
pytestmark = pytest.mark.filterwarnings("ignore::mixln.training.TrainingWarning")


def spoil(model: nn.Module, kind: Kind, batches: list[Tensor]) -> None:
    """Spoil what comes out of one layer, or the gradient that goes into it, whenever certain batches pass."""
    is_bad = False

    def look(_module: nn.Module, _args: Any, kwargs: dict[str, Any]) -> None:
        nonlocal is_bad
        is_bad = any(torch.equal(kwargs["input_ids"], batch) for batch in batches)

    def hook(_module: nn.Module, _args: Any, output: Tensor) -> Tensor:
        if not is_bad:
            return output
        if kind == "loss":
            return output * float("nan")
        if output.requires_grad:
            output.register_hook(lambda gradient: gradient * (float("inf") if kind == "gradient" else 1e6))
        return output

    model.get_submodule("model").register_forward_pre_hook(look, with_kwargs=True)
    model.get_submodule(BAD_LAYER).register_forward_hook(hook)


Poison = Callable[..., None]


def poison_runs(recipe: Recipe, data: PreparedData, kind: Kind, steps: tuple[int, ...]) -> Callable[..., Any]:
    """Return a `build_objective` whose models go wrong on the batches of certain steps."""
    batches = [training_batch(data.train, step - 1, recipe.batch_size, recipe.seed).input_ids for step in steps]

    def build(*args: Any, **kwargs: Any) -> Any:
        objective, module = build_objective(*args, **kwargs)
        spoil(objective.model, kind, batches)
        return objective, module

    return build


@pytest.fixture
def poison(monkeypatch: pytest.MonkeyPatch, recipe: Recipe, data: PreparedData) -> Poison:
    def poison(kind: Kind, *steps: int) -> None:
        monkeypatch.setattr(run_module, "build_objective", poison_runs(recipe, data, kind, steps))

    return poison


def faulty(recipe: Recipe, kind: Kind, policy: Literal["stop", "skip", "roll_back"], **changes: Any) -> Recipe:
    """Return the recipe with a policy for one kind of fault."""
    faults = (
        FaultConfig(on_gradient_spike=policy, gradient_spike_window=3, **changes)
        if kind == "spike"
        else FaultConfig(on_non_finite=policy, **changes)
    )
    return replace(recipe, faults=faults, execution=QUIET)


class Reference:
    """The loop in plain PyTorch: weights, optimiser, and steps one by one."""

    def __init__(self, recipe: Recipe, data: PreparedData) -> None:
        self.recipe, self.data = recipe, data
        self.model = build_model(recipe, data.tokenizer)
        self.objective = CausalLanguageModelObjective(self.model)
        self.optimizer = build_optimizer(recipe.optimizer, self.model)

    def make(self, *steps: int) -> Reference:
        for step in steps:
            batch = training_batch(self.data.train, step - 1, self.recipe.batch_size, self.recipe.seed)
            (self.objective.batch_loss(batch) * (1 / batch.num_predicted_tokens)).backward()
            torch.nn.utils.clip_grad_norm_(self.model.parameters(), self.recipe.optimizer.max_grad_norm)
            for group in self.optimizer.param_groups:
                group["lr"] = learning_rate(self.recipe.optimizer, self.recipe.steps, step)
            self.optimizer.step()
            self.optimizer.zero_grad()
        return self

    def state(self) -> tuple[dict[str, Any], dict[str, Any]]:
        return copy.deepcopy((self.model.state_dict(), self.optimizer.state_dict()))

    def go_back(self, state: tuple[dict[str, Any], dict[str, Any]]) -> Reference:
        self.model.load_state_dict(state[0])
        self.optimizer.load_state_dict(state[1])
        return self


def assert_same(one: nn.Module, other: nn.Module) -> None:
    """Bit for bit."""
    expected = other.state_dict()
    for name, tensor in one.state_dict().items():
        assert torch.equal(tensor, expected[name]), name


def recorded_faults(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "faults.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("kind", KINDS)
def test_a_skipped_step_leaves_weights_and_optimiser_as_they_were(
    recipe: Recipe, data: PreparedData, tmp_path: Path, poison: Poison, kind: Kind
) -> None:
    poison(kind, BAD_STEP)
    with pytest.warns(TrainingWarning, match=FOUND[kind] + ".*: skip"):
        trained = pretrain(faulty(recipe, kind, "skip"), data, tmp_path)
    assert_same(trained.model, Reference(recipe, data).make(*range(1, 8), *range(9, 13)).model)
    lines = read_metrics(tmp_path)
    assert [line["step"] for line in lines] == list(range(1, 13))
    assert [line["step"] for line in lines if line["loss"] is None] == ([8] if kind == "loss" else [])
    (fault,) = recorded_faults(tmp_path)
    assert fault["step"] == 8
    assert fault["action"] == "skip"
    assert fault["rows"] == training_rows(len(data.train), 7, recipe.batch_size, recipe.seed).tolist()
    assert re.search(FOUND[kind], f"{fault['what']} in step 8 (training rows 1), first {fault['where']}")


def test_a_fault_in_the_very_first_step_is_skipped_too(
    recipe: Recipe, data: PreparedData, tmp_path: Path, poison: Poison
) -> None:
    poison("gradient", 1)
    trained = pretrain(faulty(recipe, "gradient", "skip"), data, tmp_path)
    assert_same(trained.model, Reference(recipe, data).make(*range(2, 13)).model)


@pytest.mark.parametrize("kind", KINDS)
def test_a_roll_back_goes_to_the_last_checkpoint_and_leaves_the_step_out(
    recipe: Recipe, data: PreparedData, tmp_path: Path, poison: Poison, kind: Kind
) -> None:
    poison(kind, BAD_STEP)
    made: list[int] = []
    with pytest.warns(TrainingWarning, match=FOUND[kind] + ".*: going back to step 6"):
        trained = pretrain(faulty(recipe, kind, "roll_back"), data, tmp_path, lambda step, *_: made.append(step))
    bad = [] if kind == "loss" else [8]  # a loss that is no number is not shown
    assert made == [*range(1, 8), *bad, 7, *range(9, 13)]
    reference = Reference(recipe, data).make(*range(1, 7))
    checkpoint = reference.state()
    reference.make(7).go_back(checkpoint).make(7, *range(9, 13))
    assert_same(trained.model, reference.model)
    assert [line["step"] for line in read_metrics(tmp_path)] == [*range(1, 8), *range(9, 13)]
    assert [(fault["step"], fault["action"]) for fault in recorded_faults(tmp_path)] == [(8, "roll_back")]


def test_a_roll_back_before_the_first_checkpoint_goes_to_the_beginning(
    recipe: Recipe, data: PreparedData, tmp_path: Path, poison: Poison
) -> None:
    poison("loss", 2)
    made: list[int] = []
    trained = pretrain(faulty(recipe, "loss", "roll_back"), data, tmp_path, lambda step, *_: made.append(step))
    assert made == [1, 1, *range(3, 13)]
    assert_same(trained.model, Reference(recipe, data).make(1, *range(3, 13)).model)


def test_each_roll_back_leaves_one_step_out(recipe: Recipe, data: PreparedData, tmp_path: Path, poison: Poison) -> None:
    poison("loss", 7, 8, 12)
    trained = pretrain(faulty(recipe, "loss", "roll_back"), data, tmp_path)
    assert_same(trained.model, Reference(recipe, data).make(*range(1, 7), *range(9, 12)).model)
    assert [fault["step"] for fault in recorded_faults(tmp_path)] == [7, 8, 12]


@pytest.mark.parametrize("kind", KINDS)
def test_a_stop_saves_the_state_before_the_step_and_another_policy_goes_on_from_it(
    recipe: Recipe, data: PreparedData, tmp_path: Path, poison: Poison, kind: Kind
) -> None:
    poison(kind, BAD_STEP)
    with pytest.raises(TrainingDivergedError, match=FOUND[kind] + r".*Lower the learning rate.*policy"):
        pretrain(faulty(recipe, kind, "stop"), data, tmp_path / "stopped")
    assert not (tmp_path / "stopped" / "model").exists()
    newest = list_checkpoints(tmp_path / "stopped")[-1]
    assert checkpoint_step(newest) == 7
    saved = build_model(recipe, data.tokenizer)
    load_weights(newest, saved)
    assert_same(saved, Reference(recipe, data).make(*range(1, 8)).model)

    resumed = pretrain(faulty(recipe, kind, "skip"), data, tmp_path / "stopped")
    whole = pretrain(faulty(recipe, kind, "skip"), data, tmp_path / "whole")
    assert_same(resumed.model, whole.model)
    for name in ("loss", "tokens", "learning_rate", "gradient_norm", "validation_loss"):
        expected = [line.get(name) for line in read_metrics(tmp_path / "whole")]
        assert [line.get(name) for line in read_metrics(tmp_path / "stopped")] == expected, name
    assert resumed.train_tokens == whole.train_tokens
    assert [fault["action"] for fault in recorded_faults(tmp_path / "stopped")] == ["stop", "skip"]


def test_stopping_again_leaves_the_checkpoint_of_the_first_stop_alone(
    recipe: Recipe, data: PreparedData, tmp_path: Path, poison: Poison
) -> None:
    poison("loss", BAD_STEP)
    files: list[tuple[str, int]] = []
    for _ in range(2):
        with pytest.raises(TrainingDivergedError):
            pretrain(faulty(recipe, "loss", "stop"), data, tmp_path)
        files.append((list_checkpoints(tmp_path)[-1].name, list_checkpoints(tmp_path)[-1].stat().st_ino))
    assert files[0] == files[1]
    assert files[0][0] == "step_00000007"


def test_a_stop_in_the_first_step_saves_the_initial_weights(
    recipe: Recipe, data: PreparedData, tmp_path: Path, poison: Poison
) -> None:
    poison("loss", 1)
    with pytest.raises(TrainingDivergedError, match="step 1 "):
        pretrain(faulty(recipe, "loss", "stop"), data, tmp_path)
    trained = pretrain(faulty(recipe, "loss", "skip"), data, tmp_path)
    assert_same(trained.model, Reference(recipe, data).make(*range(2, 13)).model)


@pytest.mark.parametrize("policy", ["skip", "roll_back"])
def test_too_many_faults_stop_the_run_and_more_of_them_allowed_it_goes_on(
    recipe: Recipe, data: PreparedData, tmp_path: Path, poison: Poison, policy: Literal["skip", "roll_back"]
) -> None:
    poison("loss", 4, 7, 11)
    for _ in range(2):  # the same again stops in the same place
        with pytest.raises(TrainingDivergedError, match=r"step 11 .*more than faults\.max_faults, 2, already"):
            pretrain(faulty(recipe, "loss", policy, max_faults=2), data, tmp_path)
    trained = pretrain(faulty(recipe, "loss", policy, max_faults=3), data, tmp_path)
    kept = [step for step in range(1, 13) if step not in (4, 7, 11)]
    assert_same(trained.model, Reference(recipe, data).make(*kept).model)
    assert [(fault["step"], fault["action"]) for fault in recorded_faults(tmp_path)] == [
        (4, policy),
        (7, policy),
        *[(11, "stop")] * 2,
        (11, policy),
    ]


def test_no_spike_is_seen_before_the_window_is_full_or_when_not_looked_for(
    recipe: Recipe, data: PreparedData, tmp_path: Path, poison: Poison
) -> None:
    poison("spike", 2)
    pretrain(faulty(recipe, "spike", "stop"), data, tmp_path / "early")
    poison("spike", BAD_STEP)
    pretrain(replace(recipe, execution=QUIET), data, tmp_path / "ignored")
    for folder in ("early", "ignored"):
        assert not (tmp_path / folder / "faults.jsonl").exists()


@pytest.mark.slow
@pytest.mark.parametrize("policy", ["skip", "roll_back"])
@pytest.mark.parametrize("cut_after", [7, 10])
def test_an_interruption_around_a_fault_changes_nothing(
    recipe: Recipe,
    data: PreparedData,
    tmp_path: Path,
    poison: Poison,
    policy: Literal["skip", "roll_back"],
    cut_after: int,
) -> None:
    """Interrupted in step 7 of the first pass, in step 7 of the second, and later; killed without a checkpoint too."""
    poison("spike", BAD_STEP)
    recipe = replace(faulty(recipe, "spike", policy), evaluate_every=5)
    whole = pretrain(recipe, data, tmp_path / "whole")

    class KilledError(Exception):
        pass

    for name, passes in (("first", 1), ("second", 2)):
        for by in (signal.SIGINT, None):
            seen = 0

            def cut(step: int, *_: float, by: signal.Signals | None = by, passes: int = passes) -> None:
                nonlocal seen
                seen += step == cut_after
                if seen == passes and step == cut_after:
                    if by is None:
                        raise KilledError
                    os.kill(os.getpid(), by)

            folder = tmp_path / f"{name}-{by}"
            if passes == 2 and (policy == "skip" or cut_after > BAD_STEP):
                continue  # such a step is made once
            with pytest.raises((KeyboardInterrupt, KilledError)):
                pretrain(recipe, data, folder, cut)
            resumed = pretrain(recipe, data, folder)
            assert_same(resumed.model, whole.model)
            assert resumed.validation == whole.validation
            for key in ("step", "loss", "tokens", "validation_loss"):
                expected = [line.get(key) for line in read_metrics(tmp_path / "whole")]
                assert [line.get(key) for line in read_metrics(folder)] == expected, key


def test_the_validation_loss_is_that_of_the_final_weights_when_the_last_step_is_left_out(
    recipe: Recipe, data: PreparedData, tmp_path: Path, poison: Poison
) -> None:
    poison("loss", 12)
    recipe = replace(
        faulty(recipe, "loss", "roll_back"), evaluate_every=10, execution=replace(QUIET, checkpoint_every=8)
    )
    whole = pretrain(recipe, data, tmp_path / "whole")
    passes = 0

    def interrupt(step: int, *_: float) -> None:
        nonlocal passes
        passes += step == 9
        if passes == 2:
            os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        pretrain(recipe, data, tmp_path / "cut", interrupt)
    resumed = pretrain(recipe, data, tmp_path / "cut")
    assert_same(resumed.model, whole.model)
    assert resumed.validation == whole.validation
    again = pretrain(recipe, data, tmp_path / "cut")
    assert again.validation.mean == pytest.approx(resumed.validation.mean, rel=1e-6)


def test_faults_that_cannot_be_noted_are_one_clear_error(
    recipe: Recipe, data: PreparedData, tmp_path: Path, poison: Poison
) -> None:
    poison("loss", BAD_STEP)
    (tmp_path / "faults.jsonl").symlink_to("/dev/full")
    with pytest.raises(InputError, match=r"faults\.jsonl: No space left on device\. Make room"):
        pretrain(faulty(recipe, "loss", "skip"), data, tmp_path)
    (tmp_path / "faults.jsonl").unlink()
    trained = pretrain(faulty(recipe, "loss", "skip"), data, tmp_path)
    assert_same(trained.model, Reference(recipe, data).make(*range(1, 8), *range(9, 13)).model)


@pytest.mark.parametrize("policy", ["stop", "skip", "roll_back"])
@pytest.mark.parametrize("is_last", [False, True])
def test_a_validation_loss_that_is_no_number_ends_the_run_unless_steps_are_skipped(
    recipe: Recipe,
    data: PreparedData,
    tmp_path: Path,
    policy: Literal["stop", "skip", "roll_back"],
    is_last: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    recipe = replace(faulty(recipe, "loss", policy), evaluate_every=4)
    wrong = recipe.steps if is_last else 4
    validate = run_module.TrainingRun.validate

    def once_wrong(self: run_module.TrainingRun) -> Any:
        found: Any = validate(self)
        return type(found)(math.nan, found.num_tokens) if self.step == wrong else found

    monkeypatch.setattr(run_module.TrainingRun, "validate", once_wrong)
    if is_last or policy != "skip":
        with pytest.raises(TrainingDivergedError, match=f"the validation loss was nan in step {wrong}"):
            pretrain(recipe, data, tmp_path)
        return
    with pytest.warns(TrainingWarning, match="the validation loss was nan in step 4.*going on"):
        trained = pretrain(recipe, data, tmp_path)
    assert math.isfinite(trained.validation.mean)
    assert next(line for line in read_metrics(tmp_path) if line["step"] == 4)["validation_loss"] is None
