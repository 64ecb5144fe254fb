"""A long document takes a bounded multiple of its size."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from mixln.data import DataConfig, prepare_data, train_tokenizer
from mixln.errors import InputError
from mixln.models import fragments

LONG = 20_000_000
BYTES_PER_CHARACTER = 12

PROGRAM = """
import json, sys
from pathlib import Path
from mixln.data import DataConfig, prepare_data

def memory(field):
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(1024 * int(line.split()[1]) for line in lines if line.startswith(field))

if __name__ == "__main__":
    short, long, tokenizer, out = sys.argv[1:]
    for corpus in (short, long):
        config = DataConfig(corpus, None if corpus == short else short, tokenizer=tokenizer or None, vocab_size=300)
        before = memory("VmRSS")
        Path("/proc/self/clear_refs").write_text("5")
        data = prepare_data(config, Path(out))
    print(json.dumps([memory("VmHWM") - before, data.statistics.train.characters]))
"""


@pytest.mark.slow
@pytest.mark.parametrize("given", [True, False])
def test_memory_is_a_small_multiple_of_the_longest_document(given: bool, tmp_path: Path) -> None:
    words = ["some", "words", "and", "numbers", "12,", "of", "a", "long", "document."]
    line = " ".join(words * (LONG // len(" ".join(words)) + 1))[:LONG]
    short, long = tmp_path / "short.jsonl", tmp_path / "long.jsonl"
    short.write_text("".join(json.dumps({"text": line[start : start + 2000]}) + "\n" for start in range(50)), "utf-8")
    long.write_text(json.dumps({"text": line}) + "\n", "utf-8")
    if given:
        train_tokenizer([line[:2000]], 300).save_pretrained(tmp_path / "tokenizer")
    tokenizer = str(tmp_path / "tokenizer") if given else ""
    command = [sys.executable, "-c", PROGRAM, str(short), str(long), tokenizer, str(tmp_path / "cache")]
    gained, characters = json.loads(subprocess.run(command, check=True, capture_output=True).stdout)
    assert characters == LONG
    assert gained < BYTES_PER_CHARACTER * LONG, f"{gained / LONG:.1f} bytes for each character"


def test_a_document_that_is_too_long_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fragments, "FRAGMENT_CHARACTERS", 50)
    monkeypatch.setattr(fragments, "LONGEST_CHARACTERS", 2000)
    rows = [*(f"document number {number} of some" for number in range(30)), "some " * 1000, "x" * 3000]
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps({"text": row}) + "\n" for row in rows), encoding="utf-8")
    train_tokenizer(rows[:9], 300).save_pretrained(tmp_path / "tokenizer")
    for tokenizer in (str(tmp_path / "tokenizer"), None):
        with pytest.raises(InputError, match=r"^rows.jsonl:32: 3,000 characters in a row .*split this document"):
            prepare_data(DataConfig(str(path), tokenizer=tokenizer, vocab_size=300), tmp_path / "cache")
