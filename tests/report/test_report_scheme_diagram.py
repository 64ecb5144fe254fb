"""Diagrams show what is in the plan, and nothing else."""

from __future__ import annotations

import re
from dataclasses import replace

import pytest
from placement_tools import PLACEMENTS

from mixln.placement import (
    NORM,
    BlockPlan,
    Entry,
    NormPlan,
    Placement,
    PlacementError,
    QKVNormPlan,
    StackPlan,
    SublayerPlan,
    find_entry,
    list_modifiers,
    list_schemes,
)
from mixln.placement.registry import MODIFIERS, SCHEMES
from mixln.report.scheme_diagram import block_parts, describe_stack, draw_block

pytestmark = pytest.mark.filterwarnings("ignore::mixln.placement.PlacementWarning")

EVERYTHING = SublayerPlan(
    input_norm=NormPlan(groups=4),
    gain=0.5,
    branch_norm=NormPlan(kind="dyt", slope=0.25),
    output_norm=NORM,
    residual_scale=2.0,
    bypass=3.0,
    gate="stream",
    qkv_norm=QKVNormPlan(("query", "key"), per_head=False),
)


def stack(text: str, num_layers: int = 12) -> StackPlan:
    return Placement.parse(text).plan(num_layers)


def without_numbers(sublayer: SublayerPlan) -> SublayerPlan:
    scale = "learned" if sublayer.residual_scale == "learned" else 1.0
    return replace(sublayer, gain=1.0, residual_scale=scale, bypass=1.0 if sublayer.bypass else 0.0)


def expected_labels(plan: SublayerPlan, name: str) -> list[str]:
    """The labels of one sublayer from the fields of its plan, in the order of reading: a row from left to right."""
    labels = [name]
    for role, norm in (("N_in", plan.input_norm), ("N_branch", plan.branch_norm), ("N_out", plan.output_norm)):
        labels += [role] * (norm is not None)
    labels += ["gain"] * (plan.gain != 1)
    labels += ["rho learned"] * (plan.residual_scale == "learned")
    labels += ["rho ="] * (plan.residual_scale not in ("learned", 1.0))
    labels += ["bypass"] * (plan.bypass != 0)
    labels += ["S gate"] * (plan.gate == "stream") + ["P gate"] * (plan.gate == "output")
    labels += ["norm of"] * (plan.qkv_norm is not None)
    norms = [plan.input_norm, plan.branch_norm, plan.output_norm, plan.qkv_norm and plan.qkv_norm.norm]
    for norm in filter(None, norms):
        labels += [f"{norm.kind}, slope {norm.slope:g}"] * (norm.kind != "architecture")
        labels += [f"{norm.groups} groups"] * (norm.groups > 1)
    return sorted(labels)


LABEL = re.compile(
    r"attention|feed-forward|N_in|N_branch|N_out|gain|rho learned|rho =|bypass|S gate|P gate|norm of"
    r"|\w+, slope [\d.]+|\d+ groups"
)


@pytest.mark.parametrize("text", PLACEMENTS)
def test_a_diagram_shows_exactly_the_parts_of_its_plan(text: str) -> None:
    for block in stack(text, 4).blocks:
        found = sorted(LABEL.findall(draw_block(block)))
        expected = expected_labels(block.attention, "attention")
        assert found == sorted([*expected, *expected_labels(block.feed_forward, "feed-forward")])


@pytest.mark.parametrize("text", PLACEMENTS)
def test_every_line_of_a_diagram_leads_somewhere(text: str) -> None:
    """Each character with an arm towards a neighbour has a neighbour with an arm towards it, but for arrow heads."""
    for kind in describe_stack(stack(text)).kinds:
        check_lines(kind.draw())


@pytest.mark.parametrize("bypass", [0.0, 1.0])
@pytest.mark.parametrize("scale", [1.0, 2.0])
def test_lines_of_sublayers_that_differ(bypass: float, scale: float) -> None:
    plain = SublayerPlan(bypass=bypass, residual_scale=scale)
    for block in (BlockPlan(EVERYTHING, plain), BlockPlan(plain, EVERYTHING), BlockPlan(EVERYTHING, EVERYTHING)):
        check_lines(draw_block(block))


ARMS = {
    "│": "ud",
    "─": "lr",
    "┌": "dr",
    "┐": "dl",
    "└": "ur",
    "┘": "ul",
    "├": "udr",
    "┤": "udl",
    "┬": "dlr",
    "┴": "ulr",
    "╭": "dr",
    "╮": "dl",
    "╰": "ur",
    "╯": "ul",
    "⊕": "udlr",
    "◄": "lr",
    "►": "lr",
    "▼": "u",
    "x": "d",
}
STEPS = {"u": (-1, 0), "d": (1, 0), "l": (0, -1), "r": (0, 1)}
OPPOSITE = {"u": "d", "d": "u", "l": "r", "r": "l"}


def check_lines(diagram: str) -> None:
    rows = diagram.splitlines()
    assert all(row == row.rstrip() for row in rows)

    def at(row: int, column: int) -> str:
        return rows[row][column] if 0 <= row < len(rows) and 0 <= column < len(rows[row]) else " "

    for row, text in enumerate(rows):
        for column, character in enumerate(text):
            if character == "x" and row > 0:
                continue
            # an addition has an arm at the left only where something comes in
            for arm in ARMS.get(character, "").replace("l" if character == "⊕" else "", ""):
                down, right = STEPS[arm]
                neighbour = at(row + down, column + right)
                assert OPPOSITE[arm] in ARMS.get(neighbour, ""), f"{character} at {row}, {column}:\n{diagram}"


def test_a_block_with_every_part() -> None:
    other = SublayerPlan(bypass=1.0, gate="output")
    assert draw_block(BlockPlan(EVERYTHING, other)).splitlines() == [
        "                        x",
        "       ╭────────────────┤",
        "       │                │",
        "       │                ├───────────────────╮",
        "┌──────┴──────┐    ┌────┴────┐   ┌──────────┴──────────┐",
        "│ bypass = 3  │    │ rho = 2 │   │        N_in         │",
        "└──────┬──────┘    ├─────────┤   │      4 groups       │",
        "       │           │ S gate  │   ├─────────────────────┤",
        "       │           └────┬────┘   │     gain = 0.5      │",
        "       │                │        ├─────────────────────┤",
        "       │                │        │      attention      │",
        "       │                │        │    norm of q, k     │",
        "       │                │        │ over the full width │",
        "       │                │        ├─────────────────────┤",
        "       │                │        │      N_branch       │",
        "       │                │        │   dyt, slope 0.25   │",
        "       │                │        └──────────┬──────────┘",
        "       ├───────────────►⊕◄──────────────────╯",
        "       │           ┌────┴────┐",
        "       │           │  N_out  │",
        "       │           └────┬────┘",
        "       │                │",
        "       │                ├───────────────────╮",
        "┌──────┴──────┐         │        ┌──────────┴──────────┐",
        "│ bypass = 1  │         │        │    feed-forward     │",
        "└──────┬──────┘         │        └──────────┬──────────┘",
        "       ╰───────────────►⊕◄──────────────────╯",
        "                   ┌────┴────┐",
        "                   │ P gate  │",
        "                   └────┬────┘",
        "                        │",
        "                        ▼",
    ]


@pytest.mark.parametrize("text", PLACEMENTS)
def test_equal_blocks_are_grouped(text: str) -> None:
    plan = stack(text)
    kinds = describe_stack(plan).kinds
    assert sorted(layer for kind in kinds for layer in kind.layers) == list(range(1, 13))
    shapes = []
    for kind in kinds:
        assert kind.blocks == tuple(plan.blocks[layer - 1] for layer in kind.layers)
        shape = {(without_numbers(block.attention), without_numbers(block.feed_forward)) for block in kind.blocks}
        assert len(shape) == 1
        shapes += shape
    assert len(set(shapes)) == len(kinds)


def test_the_layers_of_each_kind_are_named() -> None:
    def titles(text: str) -> list[str]:
        return [kind.title for kind in describe_stack(stack(text)).kinds]

    assert titles("pre") == ["layers 1-12"]
    assert titles("mix") == ["layers 1-3", "layers 4-12"]
    assert titles("mix(post_layers=1)") == ["layer 1", "layers 2-12"]
    assert titles("hybrid(first_pre=true)") == ["layer 1", "layers 2-12"]
    pre, post = stack("pre", 1).blocks[0], stack("post", 1).blocks[0]
    kinds = describe_stack(StackPlan((post, pre, pre, post), 4)).kinds
    assert [kind.title for kind in kinds] == ["layers 1, 4", "layers 2-3"]


def test_numbers_that_differ_between_layers_are_a_range() -> None:
    (kind,) = describe_stack(stack("lns")).kinds
    assert kind.draw().count("gain = 1 .. 0.289") == 2
    attention, _ = block_parts(stack("lns").blocks[3])
    assert attention.branch[1].lines == ("gain = 0.5",)
    (kind,) = describe_stack(stack("deepnorm")).kinds
    assert kind.draw().count("rho = 2.21") == 2


def test_what_is_around_the_blocks() -> None:
    def around(text: str) -> tuple[tuple[str, ...], str]:
        found = describe_stack(stack(text))
        return found.embedding, found.final_norm

    assert around("pre") == ((), "norm")
    assert around("none") == ((), "none")
    assert around("peri+scaled_embed+dyt") == (("times sqrt(d)", "norm (dyt, slope 0.5)"), "norm (dyt, slope 0.5)")


def test_how_matrices_are_drawn() -> None:
    assert describe_stack(stack("pre")).init == ()
    xavier = "sqrt(2/(fan_in+fan_out))"
    assert describe_stack(stack("deepnorm")).init == (
        f"query, key: std {xavier}",
        f"value, attention_output, gate, up, down: std {xavier} * 0.319",
    )
    assert describe_stack(stack("pre+scaled_init")).init == (
        "std sqrt(2/(5d))",
        "attention_output, down: std sqrt(2/(5d)) * 0.204",
    )


@pytest.mark.parametrize("found", [*SCHEMES.values(), *MODIFIERS.values()], ids=lambda found: found.name)
def test_every_description_has_a_title_a_formula_and_a_source(found: Entry) -> None:
    assert found == find_entry(found.name)
    assert all((found.title, found.formula, found.source))


def test_descriptions_are_those_of_the_registry() -> None:
    assert [one.name for one in SCHEMES.values()] == list_schemes()
    assert [one.name for one in MODIFIERS.values()] == list_modifiers()
    mix = find_entry("mix")
    assert [str(option) for option in mix.options.values()] == [
        "alpha: a number in [0, 1], default 0.25",
        "post_layers: a whole number at least 0",
    ]
    assert (mix.title, mix.source) == ("Mix-LN", "Mix-LN, section 3")
    assert mix.formula == "Post-LN for l <= floor(alpha * L), Pre-LN above"
    assert mix.text == ("`post_layers` gives the number of Post-LN layers directly.",)
    with pytest.raises(PlacementError, match="Did you mean 'gpas'"):
        find_entry("gaps")
