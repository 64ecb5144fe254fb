"""The command line as its user meets it: results, exit status, and one clear message for bad input."""

from __future__ import annotations

import errno
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from transformers import AutoModelForCausalLM

from mixln import cli
from mixln.cli import main

TINY = [
    *("--model.hidden-size", "32", "--model.intermediate-size", "64", "--model.num-hidden-layers", "4"),
    *("--data.vocab-size", "400", "--data.sequence-length", "64", "--data.validation-fraction", "0.2"),
    *("--data.max-validation-tokens", "1000", "--batch-size", "4"),
]


@pytest.fixture(scope="session")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="session")
def trained(corpus: Path, cache: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("run")
    arguments = ["train", "--data.corpus", str(corpus), "--cache", str(cache), *TINY, "--steps", "5"]
    assert main([*arguments, "--model.placement", "mix(alpha=0.5)", "--out", str(out)]) == 0
    return out


def test_train_then_generate(trained: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["generate", str(trained / "model"), "The assert statement", "--max-new-tokens", "5"]
    texts = []
    for seed in ("1", "1", "2"):
        assert main([*arguments, "--seed", seed]) == 0
        texts.append(capsys.readouterr().out)
    assert texts[0].startswith("The assert statement")
    assert texts[0] == texts[1] != texts[2]
    assert main([*arguments, "--temperature", "0"]) == 0


def test_compare_writes_table_page_figures_and_numbers(
    corpus: Path, cache: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["compare", "--schemes", "pre", "mix(alpha=0.5)", "--text", str(corpus), "--cache", str(cache), *TINY]
    assert main([*arguments, "--tokens", "1000", "--seeds", "0", "1", "--out", str(tmp_path)]) == 0
    shown = capsys.readouterr()
    assert "mix(alpha=0.5)" in shown.out
    assert f"Report: {tmp_path / 'report.html'}" in shown.out
    result = json.loads((tmp_path / "results.json").read_text())
    assert result["command"].startswith("mixln compare --schemes pre 'mix(alpha=0.5)'")
    assert {run["config"]["steps"] for run in result["runs"]} == {4}
    # four steps teach nothing: the layers of such models are not shown
    assert "No scheme has learned word order" in shown.out
    assert [path.name for path in (tmp_path / "figures").glob("*.png")] == ["loss_curves.png"]
    assert "<svg" in (tmp_path / "figures" / "loss_curves.svg").read_text()
    # called again, it says of every run that it is finished
    assert main([*arguments, "--tokens", "1000", "--seeds", "0", "1", "--out", str(tmp_path)]) == 0
    error = capsys.readouterr().err
    assert error.count("already, at step 4; nothing to do") == 4
    assert "finished:   mix(alpha=0.5), seed 1, learning rate" in error
    assert "prepared already, nothing to tokenise" in error


def published_checkpoint(trained: Path, folder: Path) -> Path:
    """Write a trained model in the layout of the published code, whose config does not say how norms are placed."""
    shutil.copytree(trained / "model", folder)
    config = json.loads((folder / "config.json").read_text())
    for name in ("placement", "own_initializer_range", "rope_parameters"):
        del config[name]
    config |= {"model_type": "llama", "initializer_range": 0.02, "pad_token_id": -1, "max_sequence_length": 64}
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def test_convert_writes_what_auto_classes_open(
    trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = published_checkpoint(trained, tmp_path / "published")
    out = tmp_path / "converted"
    assert main(["convert", str(source), str(out), "--placement", "mix(post_layers=2)"]) == 0
    assert "mix(post_layers=2)" in capsys.readouterr().out
    original = AutoModelForCausalLM.from_pretrained(trained / "model").state_dict()
    converted = AutoModelForCausalLM.from_pretrained(out).state_dict()
    assert all(tensor.equal(converted[name]) for name, tensor in original.items())
    assert (out / "tokenizer.json").exists()


def test_convert_takes_the_published_codes_own_names(
    trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = published_checkpoint(trained, tmp_path / "published")
    arguments = ["convert", str(source), str(tmp_path / "out"), "--norm-type", "POST_PRE", "--post-num", "2"]
    assert main(arguments) == 0
    assert "mix(post_layers=2)" in capsys.readouterr().out


# every bad input: its name, the arguments ({corpus}, {trained}, {tmp} are filled in), and what the message must say
BAD_INPUT = {
    "no command": ("", "subcommand"),
    "unknown command": ("trian", "Did you mean 'train'?"),
    "unknown option": ("train --stepps 5", "Did you mean '--steps'?"),
    "word for a number": ("train --steps many", "--steps must be a whole number, not 'many'"),
    "unknown scheme": ("compare --schemes pre pots", "Did you mean 'post'"),
    "unknown scheme option": ("compare --schemes mix(alhpa=0.5)", "Did you mean 'alpha'"),
    "unknown modifier": ("compare --schemes pre+scaled_int", "Did you mean 'scaled_init'"),
    "alpha outside [0, 1]": ("compare --schemes mix(alpha=1.5)", "must be in [0, 1]"),
    "more post layers than layers": ("train --model.placement mix(post_layers=13)", "the model has 12 layers"),
    "unreadable placement": ("train --model.placement mix(", "cannot be read from"),
    "the same scheme twice": ("compare --schemes pre pre", "same value twice"),
    "unknown baseline": ("compare --baseline prre", "Did you mean 'pre'"),
    "heads that do not divide": ("train --model.num-attention-heads 5", "not a multiple of the number of attention"),
    "key-value heads that do not divide": ("train --model.num-key-value-heads 3", "does not divide"),
    "no layers": ("train --model.num-hidden-layers 0", "--model.num-hidden-layers must be more than 0"),
    "negative learning rate": ("compare --learning-rates -0.001", "learning_rate must be more than 0"),
    "negative seed": ("compare --seeds -1", "seed must not be negative"),
    "no tokens": ("compare --tokens 0", "--tokens must be at least 1"),
    "fewer tokens than a step": ("compare --tokens 10", "less than one step"),
    "unknown precision": ("train --precision float8", "precision"),
    "unknown architecture": ("train --model.architecture mamba", "architecture"),
    "unknown recipe": ("train --recipe nanoo", "Shipped: pico, nano, 71m"),
    "recipe that is no YAML mapping": ("train --recipe {tmp}/words.txt", "words"),
    "recipe with an unknown field": ("train --recipe {tmp}/typo.yaml", "stepss"),
    "baseline that is not compared": ("compare --schemes pre post --baseline lns", "not among the --schemes"),
    "recipe that is no text": ("train --recipe {tmp}/picture.png", "mixln:"),
    "home of nobody": ("train --text ~nosuchuser/x", "no corpus '~nosuchuser/x'"),
    "missing corpus": ("train --data.corpus {tmp}/nowhere", "no corpus"),
    "empty corpus folder": ("train --data.corpus {tmp}/empty", "empty"),
    "corpus of empty files": ("train --data.corpus {tmp}/blank", "blank"),
    "corpus of an unknown kind": ("train --data.corpus {tmp}/picture.png", ".png"),
    "missing field": ("train --data.corpus {tmp}/rows.jsonl", "text"),
    "a single document": ("train --data.corpus {tmp}/one.txt", "document"),
    "vocabulary too small": ("train --data.corpus {corpus} --data.vocab-size 100", "257"),
    "missing tokenizer": ("train --data.corpus {corpus} --data.tokenizer {tmp}/empty", "tokenizer"),
    "corpus too small for a row": ("train --data.corpus {corpus} --data.sequence-length 900000", "sequence_length"),
    "output is a file": ("compare --out {tmp}/one.txt", "cannot be written"),
    "output below a file": ("train --out {tmp}/one.txt/run", "cannot be written"),
    "no such model": ("generate {tmp}/nowhere hello", "nowhere"),
    "model folder without config": ("generate {trained} hello", "in a run: model/"),
    "damaged weights": ("generate {tmp}/damaged hello", "damaged/model.safetensors is damaged or cut off"),
    "no new tokens": ("generate {trained}/model hello --max-new-tokens 0", "--max-new-tokens must be at least 1"),
    "negative temperature": ("generate {trained}/model hello --temperature -1", "--temperature"),
    "hardly any temperature": ("generate {trained}/model hello --temperature 1e-300", "--temperature"),
    "seed out of range": ("generate {trained}/model hello --seed -1", "--seed must be in"),
    "text that is no Unicode": ("generate {trained}/model \udcff", "not valid Unicode"),
    "top-p above 1": ("generate {trained}/model hello --top-p 1.5", "--top-p"),
    "convert without placement": ("convert {tmp}/published {tmp}/out", "placement"),
    "convert with both": (
        "convert {tmp}/published {tmp}/out --placement pre --norm-type pre",
        "contradict each other",
    ),
    "convert an unknown norm type": ("convert {tmp}/published {tmp}/out --norm-type prre", "Did you mean 'pre'"),
    "convert without the number": ("convert {tmp}/published {tmp}/out --norm-type post_pre", "needs --post-num"),
    "convert with a lone number": (
        "convert {tmp}/published {tmp}/out --placement mix --post-num 2",
        "contradict each other",
    ),
    "convert with a wrong number": (
        "convert {tmp}/published {tmp}/out --norm-type post_pre --post-num 1",
        "does not fit placement 'mix(post_layers=1)'",
    ),
    "convert a missing folder": ("convert {tmp}/nowhere {tmp}/out --placement pre", "is not a folder"),
    "convert to the wrong placement": ("convert {tmp}/published {tmp}/out --placement post", "missing (2)"),
    "convert a model of this library": ("convert {trained}/model {tmp}/out --placement pre", "needs no conversion"),
    "convert onto something": ("convert {tmp}/published {tmp}/empty/.. --placement pre", "exists already"),
    "another recipe in the folder": ("train --data.corpus {corpus} --out {trained}", "another recipe"),
}


@pytest.fixture(scope="session")
def bad_files(trained: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("bad")
    (folder / "words.txt").write_text("only words")
    (folder / "typo.yaml").write_text("stepss: 5\n")
    (folder / "empty").mkdir()
    (folder / "blank").mkdir()
    (folder / "blank" / "a.txt").write_text("")
    (folder / "picture.png").write_bytes(b"\x89PNG")
    (folder / "rows.jsonl").write_text('{"body": "words"}\n')
    (folder / "one.txt").write_text("one document " * 100)
    shutil.copytree(trained / "model", folder / "damaged")
    weights = folder / "damaged" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:500])
    published_checkpoint(trained, folder / "published")
    return folder


@pytest.mark.parametrize("case", BAD_INPUT)
def test_bad_input_gets_one_message_and_status_2(
    case: str,
    corpus: Path,
    cache: Path,
    trained: Path,
    bad_files: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    command, expected = BAD_INPUT[case]
    monkeypatch.chdir(tmp_path)
    arguments = [part.format(corpus=corpus, trained=trained, tmp=bad_files) for part in command.split()]
    if arguments and arguments[0] in ("train", "compare"):
        arguments += ["--cache", str(cache)]
    status = main(arguments)
    shown = capsys.readouterr()
    assert status == 2
    assert expected in shown.err
    assert "Traceback" not in shown.err
    message = [line for line in shown.err.splitlines() if line.startswith("mixln: ")]
    assert len(message) == 1
    assert shown.err.splitlines()[-1] == message[0]
    assert shown.out == ""


def test_there_are_at_least_25_kinds_of_bad_input() -> None:
    assert len(BAD_INPUT) >= 25
    assert {command.split()[0] for command, _ in BAD_INPUT.values() if command} >= {
        *("compare", "train", "generate", "convert")
    }


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EACCES, errno.EROFS])
def test_what_the_system_refuses_is_said_with_the_mend(
    number: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def refuse(*_: object) -> int:
        raise OSError(number, os.strerror(number), "/some/file")

    monkeypatch.setattr(cli, "call", refuse)
    assert main(["generate", "a", "b"]) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"mixln: /some/file: {os.strerror(number)}. To fix this, ")


def test_divergence_has_a_status_of_its_own(
    corpus: Path, cache: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["train", "--data.corpus", str(corpus), "--cache", str(cache), *TINY, "--out", str(tmp_path)]
    assert main([*arguments, "--optimizer.learning-rate", "1e30", "--optimizer.max-grad-norm", "0"]) == 1
    assert "mixln: the training loss was" in capsys.readouterr().err


@pytest.mark.parametrize(
    "command",
    [
        "",
        "compare",
        "train",
        "generate",
        "convert",
        "data prepare",
        "diagnose",
        "prune",
        "export",
        "estimate",
        "schemes",
    ],
)
def test_help_has_an_example(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*command.split(), "--help"]) == 0
    text = " ".join(capsys.readouterr().out.split())
    assert command == "" or f"example: mixln {command}" in text


@pytest.mark.slow
def test_ctrl_c_during_compare_leaves_what_the_same_command_goes_on_from(
    corpus: Path, cache: Path, tmp_path: Path
) -> None:
    """In a process of its own, as `python -m mixln`, interrupted in the middle of the second run."""
    command = [
        *(sys.executable, "-m", "mixln", "compare", "--schemes", "pre", "mix", "--text", str(corpus)),
        *("--cache", str(cache), *TINY, "--seeds", "0", "--steps", "300", "--out", str(tmp_path)),
    ]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 300
    while time.monotonic() < deadline and process.poll() is None:
        metrics = list(tmp_path.glob("runs/mix*/checkpoints/step_*"))
        if metrics:
            break
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    _, error = process.communicate(timeout=60)
    assert process.returncode == 130, error
    assert "Traceback" not in error
    assert "interrupted by SIGINT: the checkpoint of step " in error
    assert "Run the same command again" in error
    finished = next(iter(tmp_path.glob("runs/pre*/result.json"))).stat().st_mtime_ns
    again = subprocess.run(command, capture_output=True, text=True, timeout=600, check=True)
    assert "pre" in again.stdout
    assert not re.search(r"\[1/2\]", again.stderr), "a finished run was repeated"
    assert next(iter(tmp_path.glob("runs/pre*/result.json"))).stat().st_mtime_ns == finished
    (lines,) = [path.read_text().splitlines() for path in tmp_path.glob("runs/mix*/metrics.jsonl")]
    assert [json.loads(line)["step"] for line in lines] == list(range(1, 301))
    assert (tmp_path / "report.html").exists()
