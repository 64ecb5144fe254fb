"""SIGKILL, at random moments and in the middle of every file operation: the next start ends in the same bits.

The child is forked by a server that has made the imports and nothing else, so that a kill costs a second and no thread
is forked. It kills itself: when the n-th event of a kind reaches it (Python's audit events: it opens, renames and
removes files), or after a random time.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import sys
import threading
from collections.abc import Callable
from dataclasses import dataclass, replace
from multiprocessing.context import ForkServerContext
from pathlib import Path
from typing import Any

import pytest
import torch
from processes import forkserver
from safetensors.torch import load_file
from test_training_faults import poison_runs

from mixln.data import PreparedData, prepare_data
from mixln.tasks import Recipe, pretrain
from mixln.training import ExecutionConfig, FaultConfig, TrainingDivergedError, TrainingInterrupted
from mixln.training import run as run_module
from mixln.training.callbacks import metrics as metrics_module
from mixln.training.saved_checkpoint import list_checkpoints

MEASURED = ("seconds", "data_seconds", "tokens_per_second")
"""What no two runs have in common."""


@dataclass(frozen=True)
class Kill:
    """When the child kills itself.

    Attributes:
        seconds: so long after training has begun.
        event: at the `number`-th audit event of this name with `path` in one of its arguments; "": of any name.
        path: see above.
        number: see above.
        half_line: when half of this line of the metrics, from 1, is written.
    """

    seconds: float | None = None
    event: str | None = None
    path: str = ""
    number: int = 1
    half_line: int | None = None


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def watch_events(kill: Kill, folder: Path, count: Callable[[], None] = lambda: None) -> None:
    seen = 0

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        nonlocal seen
        if (kill.event and event != kill.event) or not event.startswith(("os.", "open", "shutil.")):
            return
        paths = [os.fsdecode(path) for path in arguments if isinstance(path, (str, bytes, os.PathLike))]
        # rmtree names what it removes relative to the folder
        if any(kill.path in path and (str(folder) in path or event == "os.remove") for path in paths):
            seen += 1
            count()
            if seen == kill.number:
                die()

    sys.addaudithook(hook)


def cut_line(number: int) -> None:
    real = metrics_module.MetricsLog._append
    written = 0

    def append(self: metrics_module.MetricsLog, line: str) -> None:
        nonlocal written
        written += 1
        if written == number:
            self._file.write(line.encode()[: len(line) // 2])
            die()
        real(self, line)

    metrics_module.MetricsLog._append = append


def child(recipe: Recipe, cache: Path, folder: Path, kill: Kill, bad_steps: tuple[int, ...]) -> None:
    """Train until killed, if at all."""
    torch.set_num_threads(1)
    data = prepare_data(recipe.data, cache)
    if bad_steps:
        run_module.__dict__["build_objective"] = poison_runs(recipe, data, "loss", bad_steps)
    if kill.event is not None:
        watch_events(kill, folder)
    if kill.half_line is not None:
        cut_line(kill.half_line)
    if kill.seconds is not None:
        timer = threading.Timer(kill.seconds, die)
        timer.daemon = True
        timer.start()
    pretrain(recipe, data, folder)


def count_events(recipe: Recipe, cache: Path, folder: Path, counted: Path) -> None:
    """Train, and write down how many events `Kill(event="")` can choose from."""
    number = 0

    def count() -> None:
        nonlocal number
        number += 1

    torch.set_num_threads(1)
    data = prepare_data(recipe.data, cache)
    watch_events(Kill(event="", number=-1), folder, count)
    pretrain(recipe, data, folder)
    counted.write_text(str(number))


@pytest.fixture(scope="module")
def server() -> ForkServerContext:
    return forkserver()


@dataclass(frozen=True)
class Runner:
    """Runs children on one cache of data."""

    context: ForkServerContext
    cache: Path

    def __call__(
        self, recipe: Recipe, folder: Path, kill: Kill | None = None, bad_steps: tuple[int, ...] = ()
    ) -> int | None:
        process = self.context.Process(target=child, args=(recipe, self.cache, folder, kill or Kill(), bad_steps))
        process.start()
        process.join(120)
        assert process.exitcode is not None, "the child hangs"
        return process.exitcode


@pytest.fixture(scope="module")
def run_child(recipe: Recipe, server: ForkServerContext, tmp_path_factory: pytest.TempPathFactory) -> Runner:
    cache = tmp_path_factory.mktemp("kill-cache")
    prepare_data(recipe.data, cache)
    return Runner(server, cache)


def killable(recipe: Recipe, *, asynchronous: bool) -> Recipe:
    return replace(
        recipe,
        execution=ExecutionConfig(checkpoint_every=3, asynchronous_checkpoints=asynchronous, layer_metrics_every=4),
    )


def outcome(folder: Path) -> tuple[dict[str, torch.Tensor], list[dict[str, Any]]]:
    """Return final weights and metrics, without measured times."""
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    kept = [{name: value for name, value in line.items() if name not in MEASURED} for line in lines]
    return load_file(folder / "model" / "model.safetensors"), kept


def assert_same_outcome(folder: Path, expected: Path) -> None:
    weights, lines = outcome(folder)
    expected_weights, expected_lines = outcome(expected)
    assert lines == expected_lines
    assert weights.keys() == expected_weights.keys()
    assert all(torch.equal(weights[name], expected_weights[name]) for name in weights)


def assert_nothing_is_left_over(folder: Path) -> None:
    assert not [path for path in folder.rglob(".*") if path.name not in (".lock", ".metadata")]


@pytest.fixture(scope="module")
def whole(recipe: Recipe, data: PreparedData, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that was never killed; how its checkpoints are written has no influence on it."""
    folder = tmp_path_factory.mktemp("whole")
    pretrain(killable(recipe, asynchronous=True), data, folder)
    return folder


MOMENTS = {
    "while the second checkpoint is written": Kill(event="os.rename", path="step_00000006.tmp/.metadata"),
    "before the second checkpoint is flushed": Kill(event="open", path="step_00000006.tmp/manifest.json", number=2),
    "between writing and renaming": Kill(event="os.rename", path="/checkpoints/.step_00000006.tmp", number=2),
    "before an old checkpoint is removed": Kill(event="os.rename", path="/checkpoints/step_00000003"),
    "while an old checkpoint is removed": Kill(event="os.remove", path="progress.json"),
    "in the middle of a line of the metrics": Kill(half_line=8),
    "before the model gets its name": Kill(event="os.rename", path="/.model."),
}


@pytest.mark.parametrize("asynchronous", [False, True], ids=["synchronous", "asynchronous"])
@pytest.mark.parametrize("moment", MOMENTS)
def test_a_kill_at_a_delicate_moment_changes_nothing(
    recipe: Recipe, run_child: Runner, whole: Path, tmp_path: Path, moment: str, asynchronous: bool
) -> None:
    recipe, folder, kill = killable(recipe, asynchronous=asynchronous), tmp_path / "run", MOMENTS[moment]
    assert run_child(recipe, folder, kill) == -signal.SIGKILL
    assert not (folder / "model").exists()
    assert run_child(recipe, folder) == 0
    assert_same_outcome(folder, whole)
    assert_nothing_is_left_over(folder)


def test_a_checkpoint_that_a_kill_cut_short_is_not_taken_for_one(
    recipe: Recipe, run_child: Runner, tmp_path: Path
) -> None:
    kill = Kill(event="os.rename", path="/checkpoints/.step_00000006.tmp", number=2)
    assert run_child(killable(recipe, asynchronous=True), tmp_path / "run", kill) == -signal.SIGKILL
    assert [path.name for path in list_checkpoints(tmp_path / "run")] == ["step_00000003"]
    assert (tmp_path / "run" / "checkpoints" / ".step_00000006.tmp").exists()


def kill_again_and_again(
    recipe: Recipe, run_child: Runner, folder: Path, kills: list[Kill], bad_steps: tuple[int, ...] = ()
) -> list[int | None]:
    """Run until nothing is left to kill; return the exit codes."""
    codes: list[int | None] = []
    for kill in kills:
        print(kill)
        codes.append(run_child(recipe, folder, kill, bad_steps))
        assert codes[-1] in (0, -signal.SIGKILL)
    assert run_child(recipe, folder, None, bad_steps) == 0
    return codes


@pytest.mark.parametrize("asynchronous", [False, True], ids=["synchronous", "asynchronous"])
def test_kills_at_random_moments_change_nothing(
    recipe: Recipe, run_child: Runner, whole: Path, tmp_path: Path, asynchronous: bool
) -> None:
    """One run, killed five times in a row."""
    chance = random.Random(seed := 11 + asynchronous)
    print("seed", seed)
    recipe = killable(recipe, asynchronous=asynchronous)
    kills = [Kill(seconds=chance.uniform(0.02, 0.5)) for _ in range(5)]  # the whole run takes half a second at least
    assert -signal.SIGKILL in kill_again_and_again(recipe, run_child, tmp_path / "run", kills)
    assert_same_outcome(tmp_path / "run", whole)


@pytest.mark.slow
def test_kills_around_faults_change_nothing(
    recipe: Recipe, data: PreparedData, run_child: Runner, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = replace(killable(recipe, asynchronous=True), faults=FaultConfig(on_non_finite="roll_back"))
    assert run_child(recipe, tmp_path / "whole", None, (5, 8)) == 0
    assert [line["step"] for line in outcome(tmp_path / "whole")[1]] == [1, 2, 3, 4, 6, 7, 9, 10, 11, 12]
    kills = [
        Kill(event="open", path="/faults.jsonl"),
        Kill(event="os.rename", path="/.metrics.jsonl", number=2),  # the roll-back drops lines
        Kill(event="open", path="step_00000006.tmp/manifest.json"),
        Kill(event="open", path="/faults.jsonl", number=2),
        Kill(half_line=3),
    ]
    codes = kill_again_and_again(recipe, run_child, tmp_path / "run", kills, (5, 8))
    assert codes == [-signal.SIGKILL] * len(kills)
    assert_same_outcome(tmp_path / "run", tmp_path / "whole")
    noted = [json.loads(line) for line in (tmp_path / "run" / "faults.jsonl").read_text().splitlines()]
    assert {line["step"] for line in noted} == {5, 8}
    # and with the other policy, at the end of its patience
    monkeypatch.setattr(run_module, "build_objective", poison_runs(recipe, data, "loss", (5, 8)))
    with pytest.raises(TrainingDivergedError, match="step 5"):
        pretrain(replace(recipe, faults=FaultConfig()), data, tmp_path / "stopped")


def test_a_second_interrupt_ends_the_run_at_once_and_it_goes_on_from_the_last_checkpoint(
    recipe: Recipe, data: PreparedData, whole: Path, tmp_path: Path
) -> None:
    recipe = killable(recipe, asynchronous=True)
    before = signal.getsignal(signal.SIGINT)  # of a shell's background jobs it is ignored

    def interrupt(step: int, *_: float) -> None:
        if step == 7:
            os.kill(os.getpid(), signal.SIGTERM)
            os.kill(os.getpid(), signal.SIGINT)
            pytest.fail("the second signal has waited")

    with pytest.raises(TrainingInterrupted) as stopped:
        pretrain(recipe, data, tmp_path, interrupt)
    assert stopped.value.signal_number == signal.SIGINT
    assert list_checkpoints(tmp_path)[-1].name == "step_00000006"
    assert signal.getsignal(signal.SIGINT) is before
    pretrain(recipe, data, tmp_path)
    assert_same_outcome(tmp_path, whole)


def test_checkpoints_and_the_model_are_on_the_disk_itself_before_they_get_their_names(
    recipe: Recipe, data: PreparedData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else a power cut could leave an empty model, and no checkpoint any more."""
    flushed: list[str] = []
    real = os.fsync

    def fsync(descriptor: int) -> None:
        flushed.append(str(Path(f"/proc/self/fd/{descriptor}").readlink().relative_to(tmp_path)))
        real(descriptor)

    monkeypatch.setattr(os, "fsync", fsync)
    pretrain(killable(recipe, asynchronous=False), data, tmp_path)
    temporary = f".model.{os.getpid()}.tmp"
    assert {f"{temporary}/{path.name}" for path in (tmp_path / "model").iterdir()} | {temporary} <= set(flushed)
    assert {f"checkpoints/.step_00000003.tmp/{name}" for name in ("__0_0.distcp", ".metadata", "manifest.json")} <= set(
        flushed
    )


@pytest.mark.slow
@pytest.mark.parametrize("asynchronous", [False, True], ids=["synchronous", "asynchronous"])
def test_a_kill_at_any_file_operation_changes_nothing(
    recipe: Recipe, run_child: Runner, whole: Path, tmp_path: Path, asynchronous: bool
) -> None:
    """Every seventh of all operations, from a random one on; each time a run of its own, killed once."""
    recipe = killable(recipe, asynchronous=asynchronous)
    arguments = (recipe, run_child.cache, tmp_path / "counted", tmp_path / "number")
    process = run_child.context.Process(target=count_events, args=arguments)
    process.start()
    process.join(120)
    number = int((tmp_path / "number").read_text())
    assert number > 150
    first = random.Random(seed := random.randrange(1000)).randrange(1, 8)
    print("seed", seed, "of", number)
    for chosen in range(first, number + 1, 7):
        folder = tmp_path / str(chosen)
        print("operation", chosen)
        # in the background, other operations may come in between: the last few may not be reached
        assert run_child(recipe, folder, Kill(event="", number=chosen)) in (-signal.SIGKILL, 0)
        assert run_child(recipe, folder) == 0
        assert_same_outcome(folder, whole)
        shutil.rmtree(folder)


@pytest.mark.slow
def test_many_kills_at_random_moments_change_nothing(
    recipe: Recipe, run_child: Runner, whole: Path, tmp_path: Path
) -> None:
    chance = random.Random(seed := random.randrange(1000))
    print("seed", seed)
    for number in range(15):
        kills = [Kill(seconds=chance.uniform(0.0, 0.7)) for _ in range(2)]
        folder = tmp_path / str(number)
        kill_again_and_again(killable(recipe, asynchronous=bool(number % 2)), run_child, folder, kills)
        assert_same_outcome(folder, whole)
        shutil.rmtree(folder)
