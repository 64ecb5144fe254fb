"""Text that cannot all be read: every command that reads text says so, or refuses it in one line."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from pydoc_data.topics import topics

import pytest
from tiny import save_tiny_llama

from mixln.cli import main
from mixln.data import PreparedData

COMMANDS = ["diagnose", "prune --drop", "prune --heal", "remove-norm", "train", "data prepare"]
ROWS = [{"body": topics[name]} for name in sorted(topics)[:12]]


@pytest.fixture(scope="module")
def llama(data: PreparedData, tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(save_tiny_llama(tmp_path_factory.mktemp("llama"), data.tokenizer, 3, initializer_range=0.05))


def run(command: str, model: str, text: Path, *more: str) -> int:
    out, cache = str(text.parent / "out"), ["--cache", str(text.parent / "cache")]
    measured = f"--text {text} --sequence-length 32 --max-tokens 200"
    split = "--data.vocab-size 300 --data.validation-fraction 0.2"
    healing = "--healing.tokens 256 --healing.sequence-length 32"
    lines = {
        "diagnose": f"diagnose {model} --out {out} --only similarity {measured}",
        "prune --drop": f"prune {model} {out} --drop 1 {measured}",
        "prune --heal": f"prune {model} {out} --layers 2 --heal {text} {healing}",
        "remove-norm": f"remove-norm {model} {out} --text {text} --steps 13 --no-control",
        "train": f"train --text {text} --out {out} --steps 1 {split}",
        "data prepare": f"data prepare --text {text} --workers 1 {split}",
    }
    own_cache = [] if command in ("diagnose", "prune --drop") else cache
    return main([*lines[command].split(), *own_cache, *more])


@pytest.mark.parametrize("command", COMMANDS)
def test_a_file_that_is_cut_off_is_refused(
    command: str, llama: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    whole = gzip.compress("\n".join(map(json.dumps, ROWS)).encode())
    text = tmp_path / "half.jsonl.gz"
    text.write_bytes(whole[: len(whole) // 2])
    assert run(command, llama, text, "--text-field", "body") == 2
    message = capsys.readouterr().err.strip().splitlines()[-1]
    assert "half.jsonl.gz is damaged or cut off (Compressed file ended before" in message
    assert not (tmp_path / "out" / "config.json").exists()


@pytest.mark.parametrize("command", ["diagnose", "prune --drop", "data prepare"])
def test_every_document_of_an_array_is_read_and_what_was_left_out_is_said(
    command: str, llama: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "text"
    folder.mkdir()
    (folder / "array.json").write_text(json.dumps([*ROWS, {"body": None}], indent=1), encoding="utf-8")
    (folder / "README.md").write_text("about it", encoding="utf-8")
    assert run(command, llama, folder) == 2
    assert "no field 'text' (first: array.json, entry 1, whose fields are: body)" in capsys.readouterr().err
    assert run(command, llama, folder, "--text-field", "body") == 0
    shown = capsys.readouterr()
    said = " ".join((shown.out + shown.err).split())
    assert "1 x README or licence" in said
    assert "1 x empty document (null)" in said
    if command == "diagnose":
        report = json.loads((tmp_path / "out" / "report.json").read_text())
        assert report["models"][0]["documents"] >= 7  # 200 tokens in windows of 32
        assert any("1 x README or licence" in note for note in report["models"][0]["notes"])
