from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Annotated, Any

import pytest

from mixln.placement import (
    NORM,
    BlockPlan,
    Interval,
    Placement,
    PlacementError,
    StackPlan,
    SublayerPlan,
    find_entry,
    list_modifiers,
    list_schemes,
    register_modifier,
    register_scheme,
)
from mixln.placement.registry import MODIFIERS, SCHEMES


@pytest.fixture(autouse=True)
def _restored_registry() -> Iterator[None]:
    schemes, modifiers = dict(SCHEMES), dict(MODIFIERS)
    yield
    for registry, before in ((SCHEMES, schemes), (MODIFIERS, modifiers)):
        registry.clear()
        registry.update(before)


def bare(depth: int, num_layers: int) -> BlockPlan:
    del depth, num_layers
    return BlockPlan(SublayerPlan(), SublayerPlan())


def test_a_registered_scheme_is_listed_and_planned() -> None:
    @register_scheme("test_damped", embedding_norm=NORM, final_norm=None)
    def damped(depth: int, num_layers: int, *, factor: Annotated[float, Interval(0, 1)] = 0.5) -> BlockPlan:
        sublayer = SublayerPlan(input_norm=NORM, gain=factor ** (depth / num_layers))
        return BlockPlan(sublayer, sublayer)

    assert list_schemes()[-1] == "test_damped"
    plan = Placement.parse("test_damped(factor=0.25)").plan(4)
    assert plan.blocks[1].attention.gain == 0.5
    assert plan.embedding_norm == NORM
    assert plan.final_norm is None
    assert str(Placement.parse("test_damped")) == "test_damped"
    with pytest.raises(PlacementError, match=r"factor=2 must be in \[0, 1\]"):
        Placement.parse("test_damped(factor=2)")


def test_words_of_an_entry_come_from_its_decorator() -> None:
    @register_scheme("test_words", title="Worded", formula="y = x", source="nobody 2020")
    def worded(depth: int, num_layers: int, *, count: int) -> BlockPlan:
        """More of it,
        on two lines.

        Raises:
            PlacementError: never.
        """
        del count
        return bare(depth, num_layers)

    found = find_entry("test_words")
    assert (found.title, found.formula, found.source) == ("Worded", "y = x", "nobody 2020")
    assert found.text == ("More of it, on two lines.",)
    assert not found.is_modifier
    assert [str(option) for option in found.options.values()] == ["count: a whole number, must be given"]
    assert (worded.__doc__ or "").startswith("Worded: y = x (nobody 2020).\n\nMore of it,\non two lines.")


def test_an_entry_without_words_is_described_by_its_docstring() -> None:
    def documented(plan: StackPlan) -> StackPlan:
        """Change nothing.

        In any layer.
        """
        return plan

    register_modifier("test_plain")(documented)
    register_scheme("test_silent")(bare)
    found, silent = find_entry("test_plain"), find_entry("test_silent")
    assert (found.title, found.formula, found.source) == ("test_plain", "Change nothing", "")
    assert found.text == ("In any layer.",)
    assert found.is_modifier
    assert (silent.title, silent.formula, silent.text) == ("test_silent", "", ())


def test_options_of_every_kind_are_read_and_printed() -> None:
    seen: list[tuple[bool, str, int, float | None]] = []

    @register_scheme("test_kinds")
    def kinds(
        depth: int, num_layers: int, *, flag: bool = False, word: str = "a", count: int = 1, size: float | None = None
    ) -> BlockPlan:
        seen.append((flag, word, count, size))
        return bare(depth, num_layers)

    text = "test_kinds(flag=true, word=deep, count=3, size=0.5)"
    placement = Placement.parse(text)
    assert placement.scheme.options == {"flag": True, "word": "deep", "count": 3, "size": 0.5}
    assert str(placement) == text
    placement.plan(1)
    assert seen[-1] == (True, "deep", 3, 0.5)
    # options are put in the order of the signature
    assert Placement.parse("test_kinds(size=0.5, count=3, word=deep, flag=true)") == placement
    for bad, message in [("flag=1", "true or false"), ("word=true", "a word"), ("count=2.5", "a whole number")]:
        with pytest.raises(PlacementError, match=message):
            Placement.parse(f"test_kinds({bad})")


def test_a_registered_modifier_changes_the_stack() -> None:
    @register_modifier("test_bigger")
    def bigger(plan: StackPlan, *, factor: Annotated[float, Interval(0, open_below=True)] = 2.0) -> StackPlan:
        return replace(plan, embedding_scale=factor)

    assert list_modifiers()[-1] == "test_bigger"
    assert Placement.parse("post+test_bigger").plan(2).embedding_scale == 2
    assert Placement.parse("post+test_bigger(factor=3)").plan(2).embedding_scale == 3
    with pytest.raises(PlacementError, match="factor=0 must be more than 0"):
        Placement.parse("post+test_bigger(factor=0)")


@pytest.mark.parametrize("register", [register_scheme, register_modifier])
@pytest.mark.parametrize("name", ["pre", "scaled_init"])
def test_a_taken_name_is_refused(register: Callable[[str], Callable[[Any], Any]], name: str) -> None:
    before = (dict(SCHEMES), dict(MODIFIERS))
    with pytest.raises(PlacementError, match=f"'{name}' is already registered"):
        register(name)(bare)
    assert before == (SCHEMES, MODIFIERS)


@pytest.mark.parametrize("name", ["", "Pre2", "two words", "1st", "a-b", "a(b)", "a+b"])
def test_a_name_that_could_not_be_read_back_is_refused(name: str) -> None:
    with pytest.raises(PlacementError, match="is no name for a scheme"):
        register_scheme(name)(bare)
    assert name not in SCHEMES


def test_an_option_of_a_type_that_no_text_gives_is_refused() -> None:
    def listed(depth: int, num_layers: int, *, layers: list[int]) -> BlockPlan:
        del layers
        return bare(depth, num_layers)

    with pytest.raises(PlacementError, match=r"option layers: annotate it with bool, int, float or str"):
        register_scheme("test_listed")(listed)
    assert "test_listed" not in SCHEMES


def test_an_option_without_annotation_is_refused() -> None:
    namespace: dict[str, Any] = {}
    exec("def unannotated(depth, num_layers, *, factor=1.0): ...", namespace)
    with pytest.raises(PlacementError, match=r"option factor: annotate it with bool, int, float or str"):
        register_scheme("test_unannotated")(namespace["unannotated"])


def test_intervals_say_what_they_hold() -> None:
    assert str(Interval(0, 1)) == "in [0, 1]"
    assert str(Interval(0, 1, open_below=True)) == "in (0, 1]"
    assert str(Interval(2)) == "at least 2"
    assert str(Interval(2, open_below=True)) == "more than 2"
    assert [value in Interval(0, 1) for value in (-1e-9, 0, 1, 1 + 1e-9, float("nan"))] == [
        False,
        True,
        True,
        False,
        False,
    ]
    assert 0 not in Interval(0, open_below=True)
