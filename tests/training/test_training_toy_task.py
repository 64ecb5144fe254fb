"""The engine trains what it knows nothing of: a task and two callbacks that are in `toy_task.py` alone."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from processes import run_on_processes
from safetensors.torch import load_file
from toy_task import Accuracy, Freeze, GoBackOnce, ImageObjective, Images, MovingAverage, ToyJob, run_toy, run_toys

from mixln.errors import InputError
from mixln.manifest import write_manifest
from mixln.training import (
    Callback,
    ExecutionConfig,
    OptimizerConfig,
    Reduce,
    Share,
    StepRecord,
    TrainingConfig,
    TrainingDivergedError,
    TrainingInterrupted,
    TrainingWarning,
    Verdict,
    read_metrics,
    train,
)
from mixln.training.callback import Run
from mixln.training.saved_checkpoint import OtherVersionError, list_checkpoints

CONFIG = TrainingConfig(
    optimizer=OptimizerConfig(learning_rate=3e-2),
    steps=20,
    batch_size=12,
    micro_batch_size=5,
    evaluate_every=5,
    precision="float32",
    execution=ExecutionConfig(checkpoint_every=4, layer_metrics_every=10),
)
MEASURED = ("seconds", "data_seconds", "images_per_second")

pytestmark = pytest.mark.filterwarnings("ignore::mixln.training.TrainingWarning")


def lines(folder: Path) -> list[dict[str, float]]:
    """The metrics, without measured times."""
    return [{name: value for name, value in line.items() if name not in MEASURED} for line in read_metrics(folder)]


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "model" / "model.safetensors")


def assert_same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor], tolerance: float = 0.0) -> None:
    assert one.keys() == other.keys()
    for name, weight in one.items():
        torch.testing.assert_close(weight, other[name], rtol=0, atol=tolerance, msg=name)


def test_it_trains_validates_goes_back_and_has_a_result(tmp_path: Path) -> None:
    with pytest.warns(TrainingWarning, match="step 9 is not liked: going back to step 8"):
        average = run_toy(ToyJob(CONFIG, tmp_path / "run"))
    found = lines(tmp_path / "run")
    assert [line["step"] for line in found] == [*range(1, 9), *range(10, 21)]
    assert found[-1]["loss"] < found[0]["loss"] - 0.3
    assert found[-1]["accuracy"] > 0.8
    assert found[-1]["images"] == 12 * 19
    assert "gradient_norm/1" in found[8]
    trained = train(Images(CONFIG), tmp_path / "run", callbacks=[MovingAverage(), GoBackOnce(9)])  # validated again
    assert trained.validation.numbers["validation_loss"] == pytest.approx(found[-1]["validation_loss"])
    assert trained.result == {"classes": 3, "parameters": 163}
    assert trained.train_weight == 12 * 19
    assert_same(trained.model.state_dict(), weights(tmp_path / "run"))
    assert any(not torch.equal(weight, average[name]) for name, weight in weights(tmp_path / "run").items())
    recipe = json.loads((tmp_path / "run" / "recipe.json").read_text())
    assert recipe["model"] == "perceptron"
    assert "data" not in recipe
    assert recipe["callbacks"] == {"MovingAverage": {}, "GoBackOnce": {}}


def test_what_is_frozen_on_the_way_stays_in_checkpoints(tmp_path: Path) -> None:
    """Also where the run goes back to before it was frozen (from step 9 to checkpoint 8, frozen after 6 or 8)."""

    def interrupt(step: int, *_: float) -> None:
        if step == 14:
            os.kill(os.getpid(), signal.SIGTERM)

    for after in (6, 8):
        folders = [tmp_path / f"{name}{after}" for name in ("whole", "cut")]
        train(Images(CONFIG), folders[0], callbacks=[Freeze(after), GoBackOnce(9)])
        with pytest.raises(TrainingInterrupted):
            train(Images(CONFIG), folders[1], interrupt, callbacks=[Freeze(after), GoBackOnce(9)])
        with pytest.raises(InputError, match=r"callbacks\.Freeze\.after was"):
            train(Images(CONFIG), folders[1], callbacks=[Freeze(2), GoBackOnce(9)])
        with pytest.raises(InputError, match=r"callbacks\.Freeze was"):
            train(Images(CONFIG), folders[1], callbacks=[GoBackOnce(9)])
        train(Images(CONFIG), folders[1], callbacks=[Freeze(after), GoBackOnce(9)])
        assert_same(weights(folders[1]), weights(folders[0]))
    assert not torch.equal(weights(tmp_path / "whole6")["1.weight"], weights(tmp_path / "whole8")["1.weight"])


@pytest.mark.parametrize("cut_after", [3, 8, 13])
def test_an_interrupted_run_goes_on_bit_for_bit_its_average_too(tmp_path: Path, cut_after: int) -> None:
    whole = run_toy(ToyJob(CONFIG, tmp_path / "whole"))
    assert run_toy(ToyJob(CONFIG, tmp_path / "cut", interrupt_after=cut_after)) == {}
    resumed = run_toy(ToyJob(CONFIG, tmp_path / "cut"))
    assert_same(resumed, whole)
    assert_same(weights(tmp_path / "cut"), weights(tmp_path / "whole"))
    assert lines(tmp_path / "cut") == lines(tmp_path / "whole")


_KILLED = """
import os, signal, sys
from pathlib import Path
import torch
from toy_task import GoBackOnce, Images, MovingAverage
from test_training_toy_task import CONFIG
from mixln.training import train

torch.set_num_threads(1)

def die(step, *_):
    if step == 14:
        os.kill(os.getpid(), signal.SIGKILL)

train(Images(CONFIG), Path(sys.argv[1]), die, callbacks=[MovingAverage(), GoBackOnce(9)])
"""


def test_a_killed_run_goes_on_bit_for_bit(tmp_path: Path) -> None:
    whole = run_toy(ToyJob(CONFIG, tmp_path / "whole"))
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    command = [sys.executable, "-c", _KILLED, str(tmp_path / "killed")]
    assert subprocess.run(command, env=environment, check=False).returncode == -signal.SIGKILL
    resumed = run_toy(ToyJob(CONFIG, tmp_path / "killed"))
    assert_same(resumed, whole)
    assert_same(weights(tmp_path / "killed"), weights(tmp_path / "whole"))
    assert lines(tmp_path / "killed") == lines(tmp_path / "whole")


def test_what_a_task_cannot_do_is_refused(tmp_path: Path) -> None:
    execution = replace(CONFIG.execution, activation_checkpointing=True)
    with pytest.raises(
        InputError, match=r"has no activation checkpointing: leave execution\.activation_checkpointing out"
    ):
        train(Images(replace(CONFIG, execution=execution)), tmp_path)
    with pytest.raises(ValueError, match="two callbacks have the same name"):
        train(Images(CONFIG), tmp_path / "other", callbacks=[MovingAverage(), MovingAverage()])


SHORT = replace(CONFIG, steps=4, execution=replace(CONFIG.execution, checkpoint_every=2, trackers=()))


class Tied(torch.nn.Module):
    """Two layers of one weight, drawn from the global generator, that `adapt` doubles."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = torch.nn.Linear(16, 16), torch.nn.Linear(16, 16)
        self.second.weight = self.first.weight

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.second(self.first(images.flatten(1)))[:, :3]


class TiedImages(Images):
    """The toy task with a tied model, a callback of its own, and validations that go wrong at the end if asked."""

    own: tuple[Callback, ...] = ()
    validations: tuple[float, ...] = ()

    def build(self) -> Any:
        return Tied()

    def adapt(self, objective: ImageObjective, forward: Callable[[], object], reduce: Reduce) -> None:
        del forward, reduce
        with torch.no_grad():
            objective.model.first.bias.fill_(2.0)

    def callbacks(self) -> list[Callback]:
        return list(self.own)

    def evaluate(self, objective: ImageObjective, device: torch.device, share: Share, reduce: Reduce) -> Accuracy:
        found = super().evaluate(objective, device, share, reduce)
        if self.validations:
            first, self.validations = self.validations[0], self.validations[1:]
            return replace(found, loss=first)
        return found


class Noting(Callback):
    """Notes what it is asked, and fails in the end if it is to."""

    def __init__(self, name: str, results: dict[str, Any] | None = None, *, fails: bool = False) -> None:
        self._name, self._results, self._fails = name, results or {}, fails
        self.biases: list[float] = []
        self.events: list[str] = []

    @property
    def name(self) -> str:
        return self._name

    def identity(self) -> dict[str, Any]:
        return {"fails": self._fails}

    def begin(self, run: Run) -> None:
        self.biases.append(float(run.model.first.bias.detach().mean()))

    def result(self) -> dict[str, Any]:
        self.events.append("result")
        return self._results

    def close(self) -> None:
        self.events.append("close")
        if self._fails:
            raise RuntimeError(f"{self.name} cannot be closed")


def test_tied_weights_are_saved_and_a_damaged_model_is_named(tmp_path: Path) -> None:
    task = TiedImages(SHORT)
    trained = train(task, tmp_path)
    assert_same(task.load(tmp_path / "model", torch.device("cpu")).state_dict(), trained.model.state_dict())
    state = torch.get_rng_state()
    assert_same(task.build_seeded().state_dict(), task.build_seeded().state_dict())
    assert torch.equal(torch.get_rng_state(), state)
    (tmp_path / "model" / "model.safetensors").write_bytes(b"none")
    with pytest.raises(InputError, match=r"the finished model .*model is damaged .*Delete it to train it anew"):
        train(task, tmp_path)


def test_a_callback_of_the_task_is_part_of_what_may_not_change(tmp_path: Path) -> None:
    task = TiedImages(SHORT)
    task.own = (Noting("own"),)
    train(task, tmp_path)
    assert json.loads((tmp_path / "recipe.json").read_text())["callbacks"] == {"own": {"fails": False}}
    task.own = (Noting("own", fails=True),)
    with pytest.raises(InputError, match=r"callbacks\.own\.fails was False, is True"):
        train(task, tmp_path)


def test_callbacks_begin_after_the_first_batch_has_decided_also_after_going_back(tmp_path: Path) -> None:
    noting = Noting("noting")
    train(TiedImages(SHORT), tmp_path, callbacks=[noting, GoBackOnce(1)])
    assert noting.biases == [2.0, 2.0]


def test_results_come_before_the_end_which_comes_to_all(tmp_path: Path) -> None:
    callbacks = [Noting("one", fails=True), Noting("other")]
    with pytest.raises(RuntimeError, match="one cannot be closed"):
        train(TiedImages(SHORT), tmp_path, callbacks=callbacks)
    assert [callback.events for callback in callbacks] == [["result", "close"]] * 2


def test_two_results_of_one_name_are_an_error(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="two results are called 'classes'"):
        train(TiedImages(SHORT), tmp_path, callbacks=[Noting("noting", {"classes": 5})])


@pytest.mark.parametrize("checkpoint_every", [2, 3])
def test_a_last_step_that_is_left_out_is_validated_and_judged(tmp_path: Path, checkpoint_every: int) -> None:
    config = replace(SHORT, execution=replace(SHORT.execution, checkpoint_every=checkpoint_every))
    trained = train(TiedImages(config), tmp_path / "well", callbacks=[GoBackOnce(4)])
    assert trained.validation.numbers["accuracy"] > 0
    assert [line["step"] for line in read_metrics(tmp_path / "well")] == [1, 2, 3]
    task = TiedImages(config)
    task.validations = (1.0, float("nan"))  # of step 4 before and after it is left out
    with pytest.raises(TrainingDivergedError, match="the validation loss was nan in step 4"):
        train(task, tmp_path / "ill", callbacks=[GoBackOnce(4)])
    assert not (tmp_path / "ill" / "model").exists()


@pytest.mark.parametrize("change", ["a field less", "a field more", "settings"])
def test_a_checkpoint_of_another_version_is_no_damaged_one(tmp_path: Path, change: str) -> None:
    def interrupt(step: int, *_: float) -> None:
        if step == 3:
            os.kill(os.getpid(), signal.SIGTERM)

    with pytest.raises(TrainingInterrupted):
        train(Images(SHORT), tmp_path, interrupt)
    newest = list_checkpoints(tmp_path)[-1]
    path = newest / "progress.json"
    progress = json.loads(path.read_text())
    if change == "a field less":
        progress["watch"] = progress.pop("callbacks")
    elif change == "a field more":
        progress["format"] = 2
    else:
        del progress["settings"]["precision"]
    path.write_text(json.dumps(progress))
    (newest / "manifest.json").unlink()
    write_manifest(newest, {})
    with pytest.raises(OtherVersionError, match=r"step_00000003 was written by another version .* It is intact"):
        train(Images(SHORT), tmp_path)


class Divided(Callback):
    """What processes answer differently: the second alone wants checkpoints, and alone has a verdict on a step."""

    def __init__(self) -> None:
        self._is_second, self._has_gone_back = os.environ.get("RANK") == "1", False

    def wants_checkpoint(self) -> bool:
        return self._is_second

    def judge(self, record: StepRecord) -> Verdict | None:
        if self._is_second and record.step == 3 and not self._has_gone_back:
            return Verdict("go_back", 3, "the second process does not like step 3", before=2)
        return None

    def learn(self, verdict: Verdict) -> None:
        self._has_gone_back = verdict.action == "go_back"


def train_divided(_rank: int, config: TrainingConfig, folder: Path) -> None:
    train(Images(config), folder, callbacks=[Divided()])


@pytest.mark.slow
def test_processes_that_answer_differently_agree(tmp_path: Path) -> None:
    config = replace(SHORT, execution=replace(SHORT.execution, checkpoint_every=50, keep_every=1))
    run_on_processes(train_divided, config, tmp_path / "run")
    assert [path.name for path in list_checkpoints(tmp_path / "run")] == [f"step_{n:08}" for n in (1, 2, 3)]
    assert [line["step"] for line in read_metrics(tmp_path / "run")] == [1, 2, 3, 4]


@pytest.mark.slow
def test_two_processes_compute_what_one_computes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """DDP and FSDP2 on gloo; each process draws dropout of its own, so there is none here."""
    config = replace(CONFIG, micro_batch_size=None)
    monkeypatch.setenv("TOY_DROPOUT", "0")
    alone = run_toy(ToyJob(config, tmp_path / "one"))
    jobs: list[ToyJob] = []
    for strategy in ("ddp", "fsdp"):
        own = replace(config, execution=replace(config.execution, strategy=strategy))
        jobs += [
            ToyJob(own, tmp_path / strategy),
            ToyJob(own, tmp_path / f"{strategy}-cut", interrupt_after=11),
            ToyJob(own, tmp_path / f"{strategy}-cut"),
        ]
    run_toys(jobs)
    for strategy in ("ddp", "fsdp"):
        for name in (strategy, f"{strategy}-cut"):
            assert_same(torch.load(tmp_path / f"{name}.pt", weights_only=True), alone, tolerance=1e-5)
            assert_same(weights(tmp_path / name), weights(tmp_path / "one"), tolerance=1e-5)
            for one, other in zip(lines(tmp_path / name), lines(tmp_path / "one"), strict=True):
                assert one == pytest.approx(other, abs=1e-4)
        assert_same(weights(tmp_path / f"{strategy}-cut"), weights(tmp_path / strategy))
