"""`mixln train` when it is stopped, when the disk is full, and when it is run again; and `mixln export`."""

from __future__ import annotations

import json
import os
import re
import resource
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from mixln.cli import main
from mixln.training.saved_checkpoint import list_checkpoints, newest_whole, read_progress

SHAPE = [
    *("--model.hidden-size", "32", "--model.intermediate-size", "64", "--model.num-hidden-layers", "4"),
    *("--data.vocab-size", "400", "--data.sequence-length", "64", "--data.validation-fraction", "0.2"),
    *("--data.max-validation-tokens", "1000", "--batch-size", "4"),
]
LONG = ["--steps", "120", "--execution.checkpoint-every", "1000"]
SHORT = ["--steps", "12", "--execution.checkpoint-every", "5"]


@pytest.fixture(scope="session")
def command(corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    cache = tmp_path_factory.mktemp("cache")
    return ["train", "--data.corpus", str(corpus), "--cache", str(cache), *SHAPE]


@pytest.fixture(scope="session")
def whole(command: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of LONG that nobody stopped."""
    out = tmp_path_factory.mktemp("whole")
    assert main([*command, *LONG, "--out", str(out)]) == 0
    return out


@pytest.fixture(scope="session")
def whole_short(command: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("whole-short")
    assert main([*command, *SHORT, "--out", str(out)]) == 0
    return out


def losses(folder: Path) -> list[tuple[int, float, float | None]]:
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [(line["step"], line["loss"], line.get("validation_loss")) for line in lines]


def assert_same_run(folder: Path, expected: Path) -> None:
    """Bit for bit."""
    assert losses(folder) == losses(expected)
    weights, expected_weights = (load_file(path / "model" / "model.safetensors") for path in (folder, expected))
    assert all(torch.equal(tensor, expected_weights[name]) for name, tensor in weights.items())


def start(arguments: list[str], out: Path, lines: int) -> subprocess.Popen[str]:
    """Start the command in a process of its own, and return when it has written so many lines of metrics."""
    process = subprocess.Popen(
        [sys.executable, "-m", "mixln", *arguments, "--out", str(out)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    metrics, deadline = out / "metrics.jsonl", time.monotonic() + 300
    while not metrics.exists() or metrics.read_bytes().count(b"\n") < lines:
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.02)
    return process


def assert_one_message(error: str, expected: str) -> None:
    messages = [line for line in error.splitlines() if line.startswith("mixln: ")]
    assert len(messages) == 1, error
    assert error.splitlines()[-1] == messages[0]
    assert re.search(expected, messages[0]), messages[0]
    assert "Traceback" not in error
    assert "Exception" not in error


@pytest.mark.parametrize("number", [pytest.param(signal.SIGTERM, marks=pytest.mark.slow), signal.SIGINT])
def test_a_signal_leaves_a_checkpoint_and_the_same_command_goes_on(
    command: list[str], whole: Path, tmp_path: Path, number: signal.Signals
) -> None:
    process = start([*command, *LONG], tmp_path, lines=5)
    process.send_signal(number)
    output, error = process.communicate(timeout=60)
    assert process.returncode == 128 + number
    assert process.returncode == {signal.SIGTERM: 143, signal.SIGINT: 130}[number]
    assert output == ""
    assert_one_message(error, f"interrupted by {number.name}: the checkpoint of step .* is kept. Run the same command")
    stopped_after = losses(tmp_path)[-1][0]
    newest = newest_whole(tmp_path, read_progress)
    assert newest is not None
    assert newest.progress["step"] == stopped_after < 120
    assert main([*command, *LONG, "--out", str(tmp_path)]) == 0
    assert_same_run(tmp_path, whole)


@pytest.mark.slow
def test_a_second_ctrl_c_interrupts_in_the_middle_of_a_step(command: list[str], tmp_path: Path) -> None:
    """A step of this batch takes seconds."""
    process = start([*command, "--batch-size", "1500", "--steps", "50"], tmp_path, lines=1)
    process.send_signal(signal.SIGINT)
    time.sleep(0.3)
    process.send_signal(signal.SIGINT)
    _, error = process.communicate(timeout=60)
    assert process.returncode == 130
    assert_one_message(error, "interrupted by SIGINT")


def test_ctrl_c_while_python_leaves_changes_nothing(command: list[str], tmp_path: Path) -> None:
    """Of many in a row, most come after the message; without the fix, Python dies of one of them."""
    process = start([*command, *LONG], tmp_path, lines=1)
    process.send_signal(signal.SIGINT)
    assert process.stderr is not None
    message = ""
    while not message.startswith("mixln: "):
        message = process.stderr.readline()
    while process.poll() is None:
        process.send_signal(signal.SIGINT)
        time.sleep(0.005)
    assert process.returncode == 130
    assert_one_message(message + process.stderr.read(), "interrupted by SIGINT")


def test_a_changed_recipe_is_refused_with_the_difference_and_a_changed_execution_is_not(
    command: list[str], whole_short: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = ["--out", str(tmp_path / "run")]
    full = ["--steps", "12", "--execution.checkpoint-every", "4"]
    assert limited_file_size(150_000, [*command, *full, *out]) == 2  # leaves a run that has begun
    capsys.readouterr()
    for change, difference in {
        "--seed 3": "seed was 0, is 3",
        "--optimizer.learning-rate 0.5": "optimizer.learning_rate was 0.002, is 0.5",
        "--model.placement post": "model.placement was pre, is post",
        "--steps 13": "steps was 12, is 13",
    }.items():
        assert main([*command, *full, *change.split(), *out]) == 2
        shown = capsys.readouterr()
        assert_one_message(shown.err, re.escape(difference))
        assert shown.err.count(" was ") == 1, "more is said to have changed than has"
    accepted = ["--execution.checkpoint-every", "3", "--execution.trackers", "[]", "--faults.on-non-finite", "skip"]
    assert main([*command, "--steps", "12", *accepted, *out]) == 0
    assert_same_run(tmp_path / "run", whole_short)


def limited_file_size(limit: int, arguments: list[str]) -> int:
    """Run a command that may write no file longer than `limit` bytes; the system refuses as it does on a full disk."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, before[1]))
    try:
        return main(arguments)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.parametrize("asynchronous", ["true", "false"])
def test_a_checkpoint_that_the_system_refuses_is_one_message(
    command: list[str],
    whole_short: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    asynchronous: str,
) -> None:
    arguments = [*command, *SHORT, "--execution.asynchronous-checkpoints", asynchronous, "--out", str(tmp_path)]
    assert limited_file_size(300_000, arguments) == 2
    assert_one_message(capsys.readouterr().err, r"step_00000005 could not be written \(File too large\).*make room")
    assert list((tmp_path / "checkpoints").iterdir()) == []
    # the tokenizer is another library's file, which says it in another way
    assert limited_file_size(10_000, arguments) == 2
    assert_one_message(capsys.readouterr().err, r"step_00000005 could not be written \(File too large\).*make room")
    assert list((tmp_path / "checkpoints").iterdir()) == []
    assert main(arguments) == 0
    assert_same_run(tmp_path, whole_short)


def test_a_model_that_the_system_refuses_is_one_message(
    command: list[str], whole_short: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = [*command, "--steps", "12", "--execution.checkpoint-every", "100", "--out", str(tmp_path)]
    assert limited_file_size(150_000, arguments) == 2
    assert_one_message(capsys.readouterr().err, r"the model could not be saved in .*model \(.*\). Fix that")
    assert not (tmp_path / "model").exists()
    assert main(arguments) == 0
    assert_same_run(tmp_path, whole_short)


@contextmanager
def small_disk(folder: Path, size: int) -> Iterator[Path]:
    """A disk of so many KiB, if this process may mount one."""
    folder.mkdir()
    mounting = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={size}k", "tmpfs", str(folder)], capture_output=True, check=False
    )
    if mounting.returncode != 0:
        pytest.skip("needs the right to mount a disk")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


def enlarge(disk: Path) -> None:
    subprocess.run(["mount", "-o", "remount,size=100m", str(disk)], check=True)


@pytest.mark.parametrize(
    ("what", "size", "expected", "checkpoints"),
    [
        ("metrics", 0, "cannot write .*metrics.jsonl: No space left on device. Make room, and run the same", 2),
        (
            "checkpoint",
            1500,
            r"step_00000010 could not be written \(No space left on device\).*before it are intact",
            1,
        ),
        ("checkpoint, synchronous", 1700, r"step_00000010 could not be written \(No space left on device\)", 1),
        ("model", 1400, r"the model could not be saved in .*model \(.*No space left.*\). Fix that", 1),
    ],
)
def test_a_full_disk_is_one_message_and_the_last_checkpoint_is_intact(
    command: list[str],
    whole_short: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    what: str,
    size: int,
    expected: str,
    checkpoints: int,
) -> None:
    arguments = [*command, *SHORT]  # TensorBoard's files are on the same disk
    if what == "model":  # one checkpoint, and no room beside it
        arguments += ["--execution.checkpoint-every", "8"]
    if what in ("checkpoint, synchronous", "metrics"):
        arguments += ["--execution.asynchronous-checkpoints", "false"]
    with small_disk(tmp_path / "disk", size or 3000) as disk:
        if what == "metrics":
            _fill_after(disk, 11, monkeypatch)
        arguments += ["--out", str(disk / "run")]
        assert main(arguments) == 2
        monkeypatch.undo()
        assert_one_message(capsys.readouterr().err, expected)
        found = list_checkpoints(disk / "run")
        assert len(found) == checkpoints
        newest = newest_whole(disk / "run", read_progress)
        assert newest is not None
        assert newest.path == found[-1]
        assert not (disk / "run" / "model").exists()
        (disk / "filling").unlink(missing_ok=True)
        enlarge(disk)
        assert main(arguments) == 0
        assert_same_run(disk / "run", whole_short)


def _fill_after(disk: Path, step: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let something else take all the room after a step; a line of metrics then finds none."""
    from mixln.progress import TrainingProgress

    real = TrainingProgress.step

    def fill(progress: TrainingProgress, made: int, *numbers: Any) -> None:
        real(progress, made, *numbers)
        if made == step:
            with (disk / "filling").open("wb", buffering=0) as file:
                try:
                    while True:
                        file.write(bytes(4096))
                except OSError:
                    pass
            # what is left of the last page of the metrics
            metrics = disk / "run" / "metrics.jsonl"
            with metrics.open("ab", buffering=0) as file:
                file.write(b'{"step": 12, ' + bytes(-metrics.stat().st_size % 4096 - 13))

    monkeypatch.setattr(TrainingProgress, "step", fill)


@pytest.fixture(scope="session")
def with_checkpoints(command: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("kept")
    keep = ["--execution.checkpoint-every", "4", "--execution.keep-every", "4", "--model.placement", "mix(alpha=0.5)"]
    assert main([*command, "--steps", "12", *keep, "--out", str(out)]) == 0
    return out


def test_export_writes_what_auto_classes_open(
    with_checkpoints: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for source, out, name in (
        ([str(with_checkpoints)], "newest", "step_00000008"),
        ([str(with_checkpoints), "--step", "4"], "picked", "step_00000004"),
        ([str(with_checkpoints / "checkpoints" / "step_00000004")], "by-path", "step_00000004"),
    ):
        assert main(["export", source[0], str(tmp_path / out), *source[1:]]) == 0
        assert f"{name}, mix(alpha=0.5), " in capsys.readouterr().out
        AutoTokenizer.from_pretrained(tmp_path / out)
    weights = {
        out: AutoModelForCausalLM.from_pretrained(tmp_path / out).state_dict()
        for out in ("newest", "picked", "by-path")
    }
    for name, tensor in weights["picked"].items():
        assert torch.equal(tensor, weights["by-path"][name])
    assert not torch.equal(weights["picked"]["lm_head.weight"], weights["newest"]["lm_head.weight"])


# the arguments ({run}, {short}, {tmp} are filled in), and what the message must say
BAD_EXPORTS = {
    "export {tmp}/nowhere {tmp}/out": "neither the folder of a run nor",
    "export {run}/model {tmp}/out": "neither the folder of a run nor",
    "export {run} {tmp}/out --step 5": "no checkpoint of step 5. There are: 4, 8",
    "export {run}/checkpoints/step_00000004 {tmp}/out --step 4": "is one checkpoint",
    "export {run} {tmp}/full": "exists already",
    "export {run} {tmp}/full/file": "exists already",
    "export {run} {tmp}/full/file/out": "could not be saved",
    "export {short} {tmp}/out": "is its model",
    "export {tmp}/damaged {tmp}/out": "has changed",
    "export {tmp}/damaged/checkpoints/step_00000004 {tmp}/out": "has changed",
    "export {tmp}/cut/checkpoints/step_00000004 {tmp}/out": "is damaged",
    "export {run} {tmp}/out --step four": "step",
}


@pytest.mark.filterwarnings("ignore::mixln.training.saved_checkpoint.DamagedCheckpointWarning")
@pytest.mark.parametrize("case", BAD_EXPORTS)
def test_a_bad_export_is_one_message(
    with_checkpoints: Path, whole_short: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], case: str
) -> None:
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").touch()
    for name in ("damaged", "cut"):
        shutil.copytree(with_checkpoints / "checkpoints", tmp_path / name / "checkpoints")
    for checkpoint in (tmp_path / "damaged" / "checkpoints").iterdir():
        (checkpoint / "__0_0.distcp").write_bytes(b"")
    (tmp_path / "cut" / "checkpoints" / "step_00000004" / "huggingface" / "config.json").write_text("{")
    before = sorted(tmp_path.rglob("*"))
    arguments = case.format(run=with_checkpoints, short=whole_short, tmp=tmp_path).split()
    assert main(arguments) == 2
    assert_one_message(capsys.readouterr().err, re.escape(BAD_EXPORTS[case]))
    assert sorted(tmp_path.rglob("*")) == before


def test_what_is_no_checkpoint_is_passed_over(with_checkpoints: Path, tmp_path: Path) -> None:
    run = shutil.copytree(with_checkpoints, tmp_path / "run")
    (run / "checkpoints" / "step_00000005.bak").mkdir()
    (run / "checkpoints" / "step_notes").touch()
    assert main(["export", str(run), str(tmp_path / "out")]) == 0


def test_export_does_not_fill_a_disk_with_half_a_model(
    with_checkpoints: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert limited_file_size(100_000, ["export", str(with_checkpoints), str(tmp_path / "out")]) == 2
    assert_one_message(capsys.readouterr().err, "could not be saved .* Make room")
    assert list(tmp_path.iterdir()) == []
