"""What the documents show is run: their Python as it stands, and the README's commands."""

from __future__ import annotations

import importlib.util
import os
import re
import shlex
import subprocess
import sys
import xml.etree.ElementTree as ElementTree
from collections.abc import Iterator
from pathlib import Path

import pytest

from mixln.placement import Entry, Placement
from mixln.placement.registry import MODIFIERS, SCHEMES
from mixln.report.placement_figures import describe_picture
from mixln.report.scheme_diagram import describe_stack

ROOT = Path(__file__).resolve().parents[2]
FEWER = {
    "mixln compare": ["--seeds", "0", "--steps", "60"],
    "mixln compare --schemes pre mix --seeds 0 1 2 --out runs/seeds": ["--steps", "10"],
    "mixln train --recipe pico --placement 'mix(alpha=0.25)' --out runs/mix": ["--steps", "60"],
}
"""What the README's longest commands get here besides: fewer runs, and shorter ones."""
REFERENCE = ROOT / "docs" / "reference"
TUTORIALS = ROOT / "docs" / "tutorials"
"""Their blocks belong together: `test_docs_tutorials.py` runs them."""
NEEDS = {"timm.md": "timm"}
"""The package that a document's Python needs beside what everybody has."""

DOCUMENTS = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")])


def blocks(document: Path, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", document.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)


def commands(document: Path) -> list[list[str]]:
    lines = [line for block in blocks(document, "bash") for line in block.replace("\\\n", "").splitlines()]
    return [shlex.split(line, comments=True) for line in lines if line.startswith("mixln ")]


@pytest.fixture
def registry() -> Iterator[None]:
    """Take back what a document registers."""
    before = dict(SCHEMES), dict(MODIFIERS)
    yield
    for registry, saved in zip((SCHEMES, MODIFIERS), before, strict=True):
        registry.clear()
        registry.update(saved)


@pytest.mark.usefixtures("registry")
@pytest.mark.parametrize(
    "document",
    [d for d in DOCUMENTS if blocks(d, "python") and d.parent != TUTORIALS],
    ids=lambda path: path.name,
)
def test_the_python_in_a_document_runs(document: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if document.name in NEEDS:
        pytest.importorskip(NEEDS[document.name], reason="needs mixln[vision]")
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {"__name__": "document"}
    for block in blocks(document, "python"):
        exec(compile(block, str(document), "exec"), names)


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_links_and_images_within_the_repository_exist(document: Path) -> None:
    targets = re.findall(r"\]\(([^)#]+)", document.read_text(encoding="utf-8"))
    for target in targets:
        if not target.startswith("http"):
            assert (document.parent / target).exists(), target


@pytest.mark.filterwarnings("error::mixln.commands.parsing.OldNameWarning")
def test_every_command_of_the_documents_is_one_that_the_parser_takes() -> None:
    from mixln.cli import find
    from mixln.commands.parsing import parse

    shown = [(document, command) for document in DOCUMENTS for command in commands(document)]
    assert len(shown) >= 5
    for document, command in shown:
        if "--completion" in command and importlib.util.find_spec("shtab") is None:
            continue
        found = find([word for word in command[1:] if word != ">"][:2] if "--completion" in command else command[1:])
        assert not [word for word in command if re.match("--[^=]*_", word)], f"{document.name}: write dashes"
        assert isinstance(found, str) or parse(*found) is not None, f"{document.name}: {shlex.join(command)}"


def test_the_two_commands_of_the_readme_are_those_of_the_makefile_and_ci() -> None:
    readme, makefile = (ROOT / "README.md").read_text(), (ROOT / "Makefile").read_text()
    for target in ("compare", "test"):
        assert f"make {target}" in readme
        assert re.search(rf"^{target}:", makefile, re.MULTILINE)
    assert "make test" in (ROOT / ".ci" / "run").read_text()


@pytest.mark.slow
def test_the_commands_of_the_readme_do_what_it_says(tmp_path: Path) -> None:
    """In order, in an empty folder; `mixln compare` is `make compare` without the set-up."""
    shown = [["mixln", "compare"], *commands(ROOT / "README.md")]
    assert FEWER.keys() <= {shlex.join(command) for command in shown}
    for command in shown:
        finished = subprocess.run(
            [sys.executable, "-m", *command, *FEWER.get(shlex.join(command), [])],
            cwd=tmp_path,
            capture_output=True,
            text=True,
            timeout=1800,
            check=False,
            env={**os.environ, "OMP_NUM_THREADS": "1"},  # other tests run beside this one
        )
        assert finished.returncode == 0, f"{shlex.join(command)}\n{finished.stderr}"
    page = tmp_path / "runs" / "compare" / "report.html"
    assert page.exists()
    assert all(scheme in page.read_text() for scheme in ("pre", "post", "mix(alpha=0.25)", "lns"))


@pytest.mark.parametrize("found", [*SCHEMES.values(), *MODIFIERS.values()], ids=lambda found: found.name)
def test_the_page_of_schemes_says_what_the_registry_knows_and_shows_the_present_plans(found: Entry) -> None:
    """Of every registered scheme and modifier: title, formula, text, options, and a picture that is not an old one."""
    page = (REFERENCE / "schemes.md").read_text(encoding="utf-8")
    (section,) = re.findall(rf"^### `{found.name}`.*?(?=^##|\Z)", page, re.MULTILINE | re.DOTALL)
    words = " ".join(section.split())
    options = "; ".join(str(option).replace(option.name, f"`{option.name}`", 1) for option in found.options.values())
    for text in (f"### `{found.name}`: {found.title}", found.formula, *found.text, f"Options: {options or 'none'}."):
        assert text in words
    assert "- Source: " in section
    assert "- Reported: " in section
    assert f"| `{found.name}` |" in page or found.name == "pre", "no row in the table of costs"
    (image,) = re.findall(r"!\[[^]]+\]\(\.\./(images/schemes/\w+\.svg)\)", section)
    label = f"pre+{found.name}" if found.is_modifier else found.name
    shown = describe_picture(label, describe_stack(Placement.parse(label).plan(12)))
    texts = [element.text for element in ElementTree.parse(ROOT / "docs" / image).iter() if element.text]
    assert shown in texts, f"{image} is old: mixln schemes --figures docs/images/schemes"


def test_there_are_pictures_and_sections_of_nothing_else() -> None:
    names = {*SCHEMES, *MODIFIERS}
    assert {path.stem for path in (ROOT / "docs" / "images" / "schemes").iterdir()} == names
    assert set(re.findall(r"^### `(\w+)`", (REFERENCE / "schemes.md").read_text(), re.MULTILINE)) == names
    assert all(f"`{name}`" in (REFERENCE / "placements.md").read_text() for name in names)
