"""The documentation site builds without a warning: every link and every reference is found."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.mark.slow
def test_the_site_builds_without_a_warning(tmp_path: Path) -> None:
    for package in ("sphinx", "myst_parser", "furo", "sphinx_copybutton"):
        pytest.importorskip(package, reason="the site's packages come with `make docs`")
    built = subprocess.run(
        [sys.executable, "-m", "sphinx", "--nitpicky", "--fail-on-warning", "--quiet", ROOT / "docs", tmp_path],
        capture_output=True,
        text=True,
        check=False,
    )
    assert built.returncode == 0, built.stderr
    for page, text in {"reference/commands.html": "mixln diagnose", "reference/python.html": "mixln.Placement"}.items():
        assert text in (tmp_path / page).read_text(encoding="utf-8")
    assert (tmp_path / "objects.inv").is_file()
