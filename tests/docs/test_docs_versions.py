"""The versions that are stated, tested and allowed are the same ones."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
# what a row of the table of docs/how-to/other-libraries.md tests, by a word in its first column
PACKAGES = {
    "transformers `Trainer`": "transformers",
    "TRL": "trl",
    "PEFT": "peft",
    "lm-evaluation-harness": "lm-eval",
    "pipeline": "transformers",
    "accelerate": "accelerate",
    "timm": "timm",
    "torch.export": "torch",
}


def constraints(name: str) -> dict[str, str]:
    lines = (ROOT / "constraints" / f"{name}.txt").read_text(encoding="utf-8").splitlines()
    return dict(line.split("==") for line in lines)


LOWEST, NEWEST = constraints("lowest"), constraints("newest")


def lower_bounds() -> dict[str, str]:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    extras = [name for name in project["optional-dependencies"] if name not in ("dev", "docs", "trackio")]
    texts = project["dependencies"] + [text for name in extras for text in project["optional-dependencies"][name]]
    found = [re.fullmatch(r"([\w-]+)(?:\[[^]]*\])?(?:>=([\d.]+))?", text) for text in texts]
    return {match[1]: match[2] for match in found if match and match[1] != "mixln"}


def range_of(package: str) -> str:
    """Return as much of both versions as tells them apart: `2.11 to 2.14`, `0.4.10 to 0.4.13`."""
    lowest, newest = LOWEST[package].split("."), NEWEST[package].split(".")
    kept = 2 if lowest[:2] != newest[:2] else 3
    return f"{'.'.join(lowest[:kept])} to {'.'.join(newest[:kept])}"


@pytest.mark.parametrize("name", ["lowest", "newest"])
def test_constraints_are_names_and_versions_that_hold_on_any_platform(name: str) -> None:
    lines = (ROOT / "constraints" / f"{name}.txt").read_text(encoding="utf-8").splitlines()
    assert len(lines) > 100
    for line in lines:
        assert re.fullmatch(r"[a-z0-9][a-z0-9._-]*==[0-9][a-z0-9.]*", line), line
        assert not re.match(r"nvidia-|cuda-|triton=|mixln=", line), line
    assert {"pip", "hatchling", "editables"} <= constraints(name).keys(), "the build is pinned too"


def test_the_lower_bounds_of_the_project_are_the_lowest_versions_tested() -> None:
    bounds = lower_bounds()
    assert len(bounds) >= 20
    for package, bound in bounds.items():
        assert bound, f"{package} has no lower bound"
        tested = LOWEST[package]
        assert tested == bound or tested.startswith(f"{bound}."), f"{package}: {bound} is allowed, {tested} is tested"
        assert package in NEWEST


def test_the_table_of_libraries_states_the_versions_tested() -> None:
    text = (ROOT / "docs" / "how-to" / "other-libraries.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| (.+?) \| ([\d.]+ to [\d.]+) \|", text, re.MULTILINE)
    assert len(rows) == text.count("\n| ") - 2
    for library, stated in rows:
        (package,) = {package for word, package in PACKAGES.items() if word in library}
        assert stated == range_of(package), library


def test_the_readme_states_the_versions_tested() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    for name, package in {
        "PyTorch": "torch",
        "transformers": "transformers",
        "huggingface-hub": "huggingface-hub",
    }.items():
        assert f"{name} {range_of(package)}" in text


def test_ci_tests_both_ends() -> None:
    commands = (ROOT / ".ci" / "run").read_text(encoding="utf-8").splitlines()
    assert {"make --jobs 2 test", "make test-lowest", "make slow"} <= set(commands)
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    for name in ("lowest", "newest"):
        assert f"constraints/{name}.txt" in makefile
        assert re.search(rf"^test-{name}:", makefile, re.MULTILINE)
