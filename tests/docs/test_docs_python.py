"""The page of the Python interface: every public name is on it, documented and typed."""

from __future__ import annotations

import inspect
import re
from pathlib import Path
from typing import Any, is_typeddict

import pytest
from docstring_parser.google import parse

import mixln
from mixln.commands import fields

PAGE = Path(__file__).resolve().parents[2] / "docs" / "reference" / "python.md"
NAMES = [name for name in mixln.__all__ if not name.startswith("__")]
FUNCTIONS = [name for name in NAMES if inspect.isfunction(getattr(mixln, name))]


def entries() -> set[str]:
    """What the page shows, by the names that a user writes."""
    module, found = "", set[str]()
    for line in PAGE.read_text(encoding="utf-8").splitlines():
        if match := re.match(r"\.\. currentmodule:: ([\w.]+)", line):
            module = match[1]
        elif match := re.match(r"\.\. auto(?:class|function|exception):: ([\w.]+)", line):
            found.add(match[1] if "." in match[1] else f"{module}.{match[1]}")
    return found


def test_the_page_shows_nothing_twice() -> None:
    shown = re.findall(r"^\.\. auto(?:class|function|exception):: [\w.]+$", PAGE.read_text("utf-8"), re.MULTILINE)
    assert len(shown) == len(set(shown))


@pytest.mark.parametrize("name", NAMES)
def test_the_page_shows_every_public_name(name: str) -> None:
    assert f"mixln.{name}" in entries()


def test_what_functions_return_is_on_the_page() -> None:
    shown = {entry.rpartition(".")[2] for entry in entries()} | {"str", "None", "PreTrainedModel"}
    for name in FUNCTIONS:
        returned = getattr(mixln, name).__annotations__["return"]
        own = [
            one
            for one in re.findall(r"\b[A-Z]\w+|str|None", returned)
            if one not in ("Callable", "PlacedPreTrainedModel")
        ]
        assert set(own) <= shown | {"BlockFunction", "ModifierFunction"}, f"{name} returns {returned}"


def test_keyword_arguments_of_the_commands_are_on_the_page() -> None:
    kinds = [name for name, found in vars(fields).items() if is_typeddict(found)]
    assert len(kinds) >= 5
    assert {f"mixln.commands.fields.{name}" for name in kinds} <= entries()


@pytest.mark.parametrize("name", NAMES)
def test_a_public_name_is_documented_and_typed(name: str) -> None:
    public: Any = getattr(mixln, name)
    text = parse(inspect.getdoc(public) or "")
    assert text.short_description
    if name not in FUNCTIONS:
        return
    parameters = inspect.signature(public).parameters.values()
    described = {one.arg_name.lstrip("*"): one.description for one in text.params}
    for one in parameters:
        assert one.annotation is not one.empty, one.name
        assert described.get(one.name), f"{name} says nothing of {one.name}"
    assert described.keys() == {one.name for one in parameters}
    assert "return" in public.__annotations__
    if parameters:
        assert text.returns is not None or public.__annotations__["return"] == "None"
        assert text.raises, f"{name} says nothing of its errors"
