"""`mixln remove-norm` as its user meets it."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from tiny import save_tiny_llama

from mixln.cli import main
from mixln.data import PreparedData
from mixln.training import read_metrics

FAST = ["--batch-size", "4", "--sequence-length", "32", "--max-validation-tokens", "600"]


@pytest.fixture(scope="module")
def llama(data: PreparedData, tmp_path_factory: pytest.TempPathFactory) -> Path:
    # with larger weights a SwiGLU without norms blows up before it has learnt anything
    return save_tiny_llama(tmp_path_factory.mktemp("llama"), data.tokenizer, 2, initializer_range=0.05)


def arguments(model: Path, out: Path, corpus: Path, *more: str) -> list[str]:
    text = ["--text", str(corpus), "--cache", str(out.parent / "cache")]
    return ["remove-norm", str(model), str(out), *text, *FAST, *more]


def test_losses_are_printed_and_a_folder_written(
    llama: Path, corpus: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    assert main(arguments(llama, out, corpus, "--steps", "20")) == 0
    shown = capsys.readouterr().out
    assert "fine-tuned with norms" in shown
    assert "without norms" in shown
    report = json.loads((out / "norm_removal.json").read_text())
    assert len(report["removals"]) == 9
    assert f"{report['loss_norm_free']:.4f} without norms" in shown
    assert (tmp_path / "out.removal" / "norm_removal.png").stat().st_size > 10_000
    page = (tmp_path / "out.removal" / "report.html").read_text()
    assert f"<td>{report['loss_norm_free']:.4f}</td>" in page
    links = re.findall(r'href="\./([^"]+)"', page)
    assert "../out/norm_removal.json" in links
    assert all((tmp_path / "out.removal" / link).exists() for link in links)
    assert (out / "modeling_mixln_llama.py").is_file()
    # called again with the folder written, it says so, and what it came to
    assert main(arguments(llama, out, corpus, "--steps", "20")) == 0
    again = capsys.readouterr()
    assert again.out == shown
    assert f"already, after {report['train_tokens']:,} tokens of training; nothing to do" in again.err
    assert main(arguments(llama, out, corpus, "--steps", "21", "--no-control")) == 2
    error = capsys.readouterr().err
    assert "out exists already, and holds another removal of norms (control was True, is False; steps was 20" in error
    assert main(arguments(out, tmp_path / "again", corpus, "--steps", "20")) == 2
    assert "placement none has no norms: there is nothing to remove" in capsys.readouterr().err


def test_a_run_with_other_settings_is_not_taken_up(
    llama: Path, corpus: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    assert main(arguments(llama, out, corpus, "--steps", "14", "--no-control")) == 0
    (out / "norm_removal.json").unlink()
    for file in out.iterdir():
        file.unlink()
    assert main(arguments(llama, out, corpus, "--steps", "14", "--no-control", "--value-gap", "2")) == 2
    assert "value_gap was 1, is 2" in capsys.readouterr().err
    # a policy on spikes may change, and what is trained is found
    assert main(arguments(llama, out, corpus, "--steps", "14", "--no-control", "--on-spike", "stop")) == 0


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--schedule", "gpt3"], "unknown schedule 'gpt3'"),
        (["--steps", "3"], "first_step must be at least 2"),
        (["--schedule", "gpt2-small"], "is for 12 layers, and the model has 2"),
        (["--batch-size", "0"], "--batch-size must be more than 0"),
        (["--text", "/nowhere"], "nowhere"),
        (["--on-spike", "pray"], "--on-spike must be one of wait, roll_back, stop"),
        (["--steps", "0"], "--steps must be more than 0"),
        (["--evaluate-every", "0"], "--evaluate-every must be more than 0"),
        (["--sequence-length", "100000"], "takes no rows of 100000 tokens: sequence_length may be at most"),
        (["--first-step", "1"], "--first-step must be at least 2"),
    ],
)
def test_bad_input_ends_with_one_message(
    more: list[str], message: str, llama: Path, corpus: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(arguments(llama, tmp_path / "out", corpus, *more)) == 2
    shown = capsys.readouterr().err
    assert message in shown
    assert "Traceback" not in shown
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_killed_in_the_middle_of_the_schedule_it_ends_in_the_same_bits(
    llama: Path, corpus: Path, tmp_path: Path
) -> None:
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    for name, kills in (("whole", ()), ("cut", (12, 27))):
        command = [sys.executable, "-m", "mixln", *arguments(llama, tmp_path / name, corpus, "--steps", "60")]
        command.append("--no-control")
        for step in kills:
            process = subprocess.Popen(command, env=environment, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
            run = tmp_path / f"{name}.removal" / "removal"
            while process.poll() is None and len(read_metrics(run)) < step:
                time.sleep(0.02)
            process.send_signal(signal.SIGKILL)
            assert process.wait() == -signal.SIGKILL, "it was over before it could be killed"
        subprocess.run(command, env=environment, check=True, capture_output=True)
    whole, cut = (load_file(tmp_path / name / "model.safetensors") for name in ("whole", "cut"))
    assert whole.keys() == cut.keys()
    assert all(torch.equal(weight, cut[name]) for name, weight in whole.items())
    reports = [json.loads((tmp_path / name / "norm_removal.json").read_text()) for name in ("whole", "cut")]
    assert reports[0]["removals"] == reports[1]["removals"]
    assert reports[0]["loss_norm_free"] == reports[1]["loss_norm_free"]
