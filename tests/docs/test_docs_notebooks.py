"""The notebooks run from top to bottom, each in a process and a folder of its own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]
NOTEBOOKS = sorted((ROOT / "docs" / "notebooks").glob("*.md"))


def run(page: Path, folder: Path) -> list[dict[str, Any]]:
    """What each cell prints and shows."""
    environment = {
        **os.environ,
        "OMP_NUM_THREADS": "1",  # other tests run beside this one
        "HF_HUB_OFFLINE": "1",
        "HOME": str(folder / "home"),  # nothing is taken from a cache
        "PYTHONPATH": os.pathsep.join([str(ROOT / "src"), os.environ.get("PYTHONPATH", "")]),
    }
    finished = subprocess.run(
        [sys.executable, Path(__file__).with_name("notebook.py"), page],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        timeout=900,
        check=False,
    )
    assert finished.returncode == 0, finished.stderr
    return [json.loads(line) for line in finished.stdout.splitlines()]


@pytest.mark.slow
@pytest.mark.parametrize("page", [page for page in NOTEBOOKS if page.name != "index.md"], ids=lambda page: page.stem)
def test_a_notebook_runs_and_shows_what_it_says(page: Path, tmp_path: Path) -> None:
    cells = run(page, tmp_path)
    frames = [cell for cell in cells if "<table" in cell["shown"].get("text/html", "")]
    results = [cell for cell in cells if "<pre" in cell["shown"].get("text/html", "")]
    if page.stem == "train-and-compare":
        assert len(frames) == 3
        assert len(results) == 2
        assert "validation loss" in results[0]["shown"]["text/plain"]
        assert (tmp_path / "runs" / "comparison" / "report.html").exists()
    elif page.stem == "diagnose-and-prune":
        assert "6 layers" in results[0]["shown"]["text/plain"]
        assert "removed 1 of 6 layers" in results[1]["shown"]["text/plain"]
        assert (tmp_path / "models" / "five-layers" / "config.json").exists()
        assert (tmp_path / "runs" / "diagnosis" / "report.html").exists()
    else:
        losses = next(cell["shown"]["text/plain"] for cell in cells if cell["shown"].get("text/plain", "")[:1] == "{")
        assert "mix(alpha=0.5)" in losses
        assert cells[-1]["printed"].strip().endswith("Error")
    for cell in results:  # nothing is shown of work that goes on, unless it is asked for
        assert (cell["printed"], cell["errors"]) == ("", "")


def test_there_are_the_three_notebooks() -> None:
    assert {"train-and-compare", "diagnose-and-prune", "apply-placement"} <= {page.stem for page in NOTEBOOKS}
