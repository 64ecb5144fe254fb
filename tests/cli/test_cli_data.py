"""`mixln data` as its user meets it."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from mixln.cli import main

DATA = ["--data.vocab-size", "400", "--data.sequence-length", "64", "--data.validation-fraction", "0.2"]
MODEL = [
    *("--model.hidden-size", "32", "--model.intermediate-size", "64", "--model.num-hidden-layers", "2"),
    *("--batch-size", "4", "--steps", "2"),
]


@pytest.mark.slow
def test_what_is_prepared_is_what_training_finds(
    corpus: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    common = ["--text", str(corpus), "--cache", str(tmp_path / "cache"), *DATA]
    assert main(["data", "prepare", *common, "--workers", "2"]) == 0
    shown = capsys.readouterr()
    assert "training a tokenizer" in shown.err
    assert "tokenised" in shown.err
    assert "training: " in shown.out
    (folder,) = (tmp_path / "cache" / "data").iterdir()
    assert f"data: {folder}" in shown.out
    assert main(["train", *common, *MODEL, "--out", str(tmp_path / "run")]) == 0
    errors = capsys.readouterr().err
    assert f"nothing to tokenise: {folder}" in errors
    assert "tokenised" not in errors
    assert [path.name for path in (tmp_path / "cache" / "data").iterdir()] == [folder.name]


def test_a_folder_written_with_out_is_a_corpus_elsewhere(
    corpus: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    copy = shutil.copytree(corpus, tmp_path / "copy")
    command = ["data", "prepare", "--text", str(copy), *DATA, "--workers", "1", "--out", str(tmp_path / "out")]
    assert main([*command, "--cache", str(tmp_path / "cache")]) == 0
    assert f"data: {tmp_path / 'out'}" in capsys.readouterr().out
    assert not (tmp_path / "cache").exists()
    shutil.rmtree(copy)
    moved = (tmp_path / "out").rename(tmp_path / "moved")
    arguments = ["train", "--text", str(moved), *DATA, *MODEL, "--out", str(tmp_path / "run")]
    assert main([*arguments, "--cache", str(tmp_path / "cache")]) == 0
    assert not (tmp_path / "cache").exists()
    fingerprint = json.loads((moved / "manifest.json").read_text(encoding="utf-8"))["fingerprint"]
    assert fingerprint in (tmp_path / "run" / "recipe.json").read_text(encoding="utf-8")
    capsys.readouterr()
    assert main([*arguments[:3], "--data.vocab-size", "500", *arguments[5:]]) == 2
    message = capsys.readouterr().err
    assert "vocab_size=400" in message
    assert "vocab_size=500" in message


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("data", "no subcommand. There are: prepare"),
        ("data prepar", "Did you mean 'prepare'?"),
        ("data prepare --workers 0", "workers must be at least 1, got 0"),
        ("data prepare --workers some", "--workers must be a whole number, not 'some'"),
        ("data prepare --text {tmp}/nowhere", "no corpus"),
        ("data prepare --text c4", "set max_tokens"),
        ("data prepare --text {corpus} --out {tmp}/occupied", "holds something else"),
        ("data prepare --text {corpus} --out {tmp}/occupied/notes.txt", "cannot store prepared data"),
        ("data prepare --out=", "is empty"),
        ("data prepare --recipe nanoo", "Shipped: pico, nano, 71m"),
    ],
)
def test_bad_input_gets_one_message_and_status_2(
    arguments: str, message: str, corpus: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "occupied").mkdir()
    (tmp_path / "occupied" / "notes.txt").write_text("mine", encoding="utf-8")
    filled = [argument.format(corpus=corpus, tmp=tmp_path) for argument in arguments.split()]
    assert main(filled) == 2
    shown = capsys.readouterr()
    assert message in shown.err
    assert [line.startswith("mixln: ") for line in shown.err.splitlines()].count(True) == 1
    assert shown.err.splitlines()[-1].startswith("mixln: ")
    assert "Traceback" not in shown.err
    assert shown.out == ""


@pytest.mark.parametrize("arguments", [["data"], ["data", "prepare"]])
def test_help_has_an_example_at_each_level(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*arguments, "--help"]) == 0
    assert "example: mixln data prepare" in capsys.readouterr().out
