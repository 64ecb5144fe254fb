"""`mixln schemes`: the list, a page on one, pictures."""

from __future__ import annotations

import xml.etree.ElementTree as ElementTree
from pathlib import Path

import pytest

from mixln.cli import main
from mixln.placement import (
    NORM,
    BlockPlan,
    Placement,
    SublayerPlan,
    find_entry,
    list_modifiers,
    list_schemes,
    register_scheme,
)
from mixln.placement.registry import SCHEMES
from mixln.report.scheme_diagram import describe_stack

NAMES = [*list_schemes(), *list_modifiers()]


def shown(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    assert main(["schemes", *arguments]) == 0
    found = capsys.readouterr()
    assert found.err == ""
    return found.out


def refused(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    assert main(["schemes", *arguments]) == 2
    found = capsys.readouterr()
    assert found.out == ""
    assert "Traceback" not in found.err
    assert found.err.count("\n") == 1
    return found.err


def test_the_list_has_every_scheme_and_modifier(capsys: pytest.CaptureFixture[str]) -> None:
    text = shown(capsys)
    first_words = [line.split()[0] for line in text.splitlines() if line.split()]
    assert [word for word in first_words if word in NAMES] == NAMES
    words = " ".join(text.split())
    assert "Pre-LN: y = x + F(N(x)) Xiong et al. 2020" in words
    assert "alpha: a number in [0, 1], default" in words


@pytest.mark.parametrize("name", NAMES)
def test_a_page_says_all_that_the_registry_knows(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    page = shown(capsys, name)
    words, known = " ".join(page.split()), find_entry(name)
    for text in (known.title, known.formula, known.source, *known.text, *map(str, known.options.values())):
        assert text in words
    placement = name if name in list_schemes() else f"pre+{name}"
    for kind in describe_stack(Placement.parse(placement).plan(12)).kinds:
        assert kind.title in page
        assert all(line in page for line in kind.draw().splitlines())
    assert page.startswith(f"{name} (")


def test_any_placement_has_a_page_for_its_terms_and_its_stack(capsys: pytest.CaptureFixture[str]) -> None:
    page = shown(capsys, "mix(alpha=0.5)+gpas", "--num-layers", "8")
    assert (
        page.index("mix (scheme): Mix-LN") < page.index("gpas (modifier): GPAS") < page.index("in a stack of 8 layers")
    )
    assert "layers 1-4:" in page
    assert "layers 5-8:" in page
    words = " ".join(page.split())
    assert "block: post_attention_layernorm.weight, post_feedforward_layernorm.weight, activation_gate.weight" in words
    assert "block: input_layernorm.weight, post_attention_layernorm.weight, activation_gate.weight" in words
    assert "parameters outside the blocks: model.norm.weight" in words


def test_what_is_around_the_blocks_is_said(capsys: pytest.CaptureFixture[str]) -> None:
    page = shown(capsys, "peri+scaled_init")
    assert "embedding: norm\n" in page
    assert "parameters outside the blocks: model.embedding_norm.weight, model.norm.weight" in page
    assert "init: std sqrt(2/(5d))\n" in page
    page = shown(capsys, "none")
    assert "norm before the head: none" in page
    assert "parameters in a Llama block: none but the matrices" in page
    assert "parameters outside the blocks: lm_head.bias" in page


def test_parameters_inside_the_attention_and_learned_scales_are_named(capsys: pytest.CaptureFixture[str]) -> None:
    page = shown(capsys, "admin+qk_norm(per_head=false)", "--num-layers", "1")
    names = ("self_attn.q_norm.weight", "self_attn.k_norm.weight", "attention_residual.residual_scale")
    assert all(name in page for name in names)
    # a modifier with options, alone: on pre, which has no page of its own then
    page = shown(capsys, "dyt(slope=0.2)")
    assert page.startswith("dyt (modifier)")
    assert "pre (scheme)" not in page
    assert "dyt, slope 0.2" in page


def test_a_scheme_from_anywhere_is_shown(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    # so that what is registered below is taken back at the end
    monkeypatch.setitem(SCHEMES, "test_late", SCHEMES["pre"])
    del SCHEMES["test_late"]

    @register_scheme("test_late")
    def late(depth: int, num_layers: int) -> BlockPlan:
        """No norms, y = x + F(x), but for a norm on the last output."""
        return BlockPlan(SublayerPlan(), SublayerPlan(output_norm=NORM if depth == num_layers else None))

    page = shown(capsys, "test_late", "--num-layers", "3")
    assert "No norms, y = x + F(x), but for a norm on the last output" in page
    assert "source: none given" in page
    assert "layers 1-2:" in page
    assert "layer 3:" in page


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["gaps"], "unknown scheme or modifier 'gaps'. Did you mean 'gpas'?"),
        (["sandwhich"], "Did you mean 'sandwich'?"),
        (["pre+gaps"], "unknown modifier 'gaps'. Did you mean 'gpas'?"),
        (["mix(alhpa=0.5)"], "Did you mean 'alpha'?"),
        (["mix("], "cannot be read from"),
        ([""], "unknown scheme or modifier ''"),
        (["mix(post_layers=13)"], "but the model has 12 layers"),
        (["pre", "--num-layers", "0"], "--num-layers must be in [1, 1000], not 0"),
        (["pre", "--num-layers", "1001"], "--num-layers must be in [1, 1000], not 1001"),
        (["pre", "--figures", "folder"], "--figures and placement contradict each other"),
        (["--figures", "/dev/null/folder"], "cannot be written"),
    ],
)
def test_bad_input_is_one_message(arguments: list[str], expected: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert expected in refused(capsys, *arguments)


def test_a_warning_of_the_library_is_a_message(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["schemes", "lns+scaled_init"]) == 0
    assert "mixln: scaled_init takes away the effect" in capsys.readouterr().err


def test_pictures_of_all(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shown(capsys, "--figures", str(tmp_path / "once"))
    assert sorted(path.stem for path in (tmp_path / "once").iterdir()) == sorted(NAMES)
    shown(capsys, "--figures", str(tmp_path / "again"))
    for path in (tmp_path / "once").iterdir():
        assert ElementTree.fromstring(path.read_text(encoding="utf-8")).tag.endswith("svg")
        assert path.read_bytes() == (tmp_path / "again" / path.name).read_bytes()
