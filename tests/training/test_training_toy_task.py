"""The engine trains what it knows nothing of: a task and two callbacks that are in `toy_task.py` alone."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from toy_task import Freeze, GoBackOnce, Images, MovingAverage, ToyJob, run_toy, run_toys

from mixln.errors import InputError
from mixln.training import (
    ExecutionConfig,
    OptimizerConfig,
    TrainingConfig,
    TrainingInterrupted,
    TrainingWarning,
    read_metrics,
    train,
)

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
    with pytest.raises(InputError, match=r"keeps its activations: no execution\.activation_checkpointing"):
        train(Images(replace(CONFIG, execution=execution)), tmp_path)
    with pytest.raises(ValueError, match="two callbacks have the same name"):
        train(Images(CONFIG), tmp_path / "other", callbacks=[MovingAverage(), MovingAverage()])


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
