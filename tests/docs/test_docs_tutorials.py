"""Each tutorial runs as it stands, from an empty folder; here with fewer steps and tokens."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

TUTORIALS = Path(__file__).resolve().parents[2] / "docs" / "tutorials"
SHORTER = {
    r"--steps 60\b": "--steps 40",
    r"--steps (\d{3,})": "--steps 12",
    r"--seeds 0 1 2": "--seeds 0",
    r"--recipe pico": "--recipe pico --steps 12",
    r"--healing\.tokens \d+": "--healing.tokens 2000",
    r"(--max-tokens|--performance-tokens) \d+": r"\1 1000",
    r"(mixln compare --schemes pre every)": r"\1 --steps 4 --seeds 0",
}
"""What is written otherwise, so that the whole takes minutes; the words of the commands stay the same."""


def blocks(tutorial: Path) -> list[tuple[str, str]]:
    """The language and the text of each block of code, in order."""
    return re.findall(r"^```(bash|python)\n(.*?)^```", tutorial.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)


@pytest.mark.slow
@pytest.mark.parametrize("tutorial", sorted(TUTORIALS.glob("*.md")), ids=lambda path: path.stem)
def test_a_tutorial_runs_from_an_empty_folder(tutorial: Path, tmp_path: Path) -> None:
    for language, text in blocks(tutorial):
        if named := re.match(r"# (\w+\.py)\n", text):
            (tmp_path / named[1]).write_text(text, encoding="utf-8")
            continue
        if language == "bash":
            for written, shorter in SHORTER.items():
                text = re.sub(written, shorter, text)
            text = text.replace("mixln ", f"{sys.executable} -m mixln ", 1)
            text = re.sub(r"\nmixln ", f"\n{sys.executable} -m mixln ", text)
        command = ["bash", "-ec", text] if language == "bash" else [sys.executable, "-c", text]
        finished = subprocess.run(
            command,
            cwd=tmp_path,
            capture_output=True,
            text=True,
            timeout=900,
            check=False,
            env={**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"},
        )
        assert finished.returncode == 0, f"{text}\n{finished.stderr[-3000:]}"
