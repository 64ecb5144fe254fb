from __future__ import annotations

import copy
import pickle
import random
from typing import Any

import pytest
from placement_tools import PLACEMENTS

from mixln.placement import Placement, PlacementError, list_modifiers, list_schemes


@pytest.mark.parametrize("text", PLACEMENTS)
def test_the_printed_form_reads_back_as_the_same_placement(text: str) -> None:
    placement = Placement.parse(text)
    assert Placement.parse(str(placement)) == placement
    assert str(Placement.parse(str(placement))) == str(placement)


@pytest.mark.parametrize(
    ("text", "printed"),
    [
        ("mix", "mix(alpha=0.25)"),
        ("  mix ( alpha = 0.5 ) + scaled_init ", "mix(alpha=0.5)+scaled_init"),
        ("mix()", "mix(alpha=0.25)"),
        ("mix(alpha=1)", "mix(alpha=1)"),
        ("mix(alpha=1.0)", "mix(alpha=1)"),
        ("mix(alpha=.5)", "mix(alpha=0.5)"),
        ("mix(alpha=1e-3)", "mix(alpha=0.001)"),
        ("mix(post_layers=+2)", "mix(post_layers=2)"),
        ("pre + scaled_embed + scaled_init", "pre+scaled_embed+scaled_init"),
        ("deepnorm(residual_scale=3)", "deepnorm(residual_scale=3)"),
        ("deepnorm(residual_scale=1e+16)", "deepnorm(residual_scale=1e+16)"),
    ],
)
def test_there_is_one_printed_form_of_each_placement(text: str, printed: str) -> None:
    assert str(Placement.parse(text)) == printed


def test_random_options_survive_printing_and_reading_exactly() -> None:
    rng = random.Random(0)
    for _ in range(500):
        alpha, rho = rng.random(), 10 ** rng.uniform(-30, 30)
        layers = rng.randrange(10**6)
        modifiers = rng.sample(list_modifiers(), rng.randint(0, len(list_modifiers())))
        for name, option, value in (
            ("mix", "alpha", alpha),
            ("mix", "post_layers", layers),
            ("deepnorm", "residual_scale", rho),
        ):
            placement = Placement.parse("+".join([f"{name}({option}={value!r})", *modifiers]))
            again = Placement.parse(str(placement))
            assert again == placement
            assert again.scheme.options == {option: value}
            assert [modifier.name for modifier in again.modifiers] == modifiers


@pytest.mark.parametrize("text", PLACEMENTS)
def test_placements_can_be_copied_pickled_and_used_as_keys(text: str) -> None:
    placement = Placement.parse(text)
    for twin in (copy.deepcopy(placement), pickle.loads(pickle.dumps(placement)), Placement.parse(text)):
        assert twin == placement
        assert {placement: 1}[twin] == 1


def test_options_of_a_placement_are_read_only() -> None:
    options: Any = Placement.parse("mix(alpha=0.5)").scheme.options
    with pytest.raises(TypeError):
        options["alpha"] = 0.75


ALL_SCHEMES = ", ".join(list_schemes())
ALL_MODIFIERS = ", ".join(list_modifiers())

BAD = {
    "empty": ("", ["''", "mix(alpha=0.25)+scaled_init"]),
    "blank": ("   ", ["'   '"]),
    "unknown scheme": ("prre", ["'prre'", "Did you mean 'pre'?", ALL_SCHEMES]),
    "upper case": ("Sandwich", ["'Sandwich'", "Did you mean 'sandwich'?", ALL_SCHEMES]),
    "nothing like it": ("qqqqqq", ["unknown scheme 'qqqqqq'", ALL_SCHEMES]),
    "unknown option": ("mix(alfa=0.5)", ["option 'alfa'", "Did you mean 'alpha'?", "alpha, post_layers"]),
    "option of a scheme without": ("pre(alpha=0.5)", ["pre", "option 'alpha'", "it takes none"]),
    "unknown modifier": ("pre+scaled_int", ["modifier 'scaled_int'", "Did you mean 'scaled_init'?", ALL_MODIFIERS]),
    "a scheme as modifier": ("pre+post", ["unknown modifier 'post'", ALL_MODIFIERS]),
    "option of a modifier without": ("pre+scaled_init(x=1)", ["scaled_init", "option 'x'", "it takes none"]),
    "alpha above 1": ("mix(alpha=1.5)", ["mix", "alpha=1.5", "in [0, 1]"]),
    "alpha below 0": ("mix(alpha=-0.1)", ["alpha=-0.1", "in [0, 1]"]),
    "both options of mix": ("mix(alpha=0.5, post_layers=2)", ["mix", "either alpha or post_layers"]),
    "negative count": ("mix(post_layers=-1)", ["post_layers=-1", "at least 0"]),
    "broken count": ("mix(post_layers=1.5)", ["post_layers=1.5", "a whole number"]),
    "word for a number": ("mix(alpha=half)", ["alpha='half'", "a number"]),
    "truth for a number": ("mix(alpha=true)", ["alpha=True", "a number"]),
    "nan": ("mix(alpha=nan)", ["alpha='nan'", "a number"]),
    "inf": ("deepnorm(residual_scale=inf)", ["residual_scale='inf'", "a number"]),
    "overflow": ("deepnorm(residual_scale=1e999)", ["residual_scale=inf", "a finite number"]),
    "zero rho": ("deepnorm(residual_scale=0)", ["residual_scale=0", "more than 0"]),
    "negative rho": ("deepnorm(residual_scale=-1)", ["residual_scale=-1", "more than 0"]),
    "doubled option": ("mix(alpha=0.5, alpha=0.5)", ["'alpha'", "twice"]),
    "doubled modifier": ("pre+scaled_init+scaled_init", ["the same modifier", "twice"]),
    "modifier alone": ("scaled_init", ["'scaled_init' is a modifier", "pre+scaled_init"]),
    "trailing plus": ("pre+", ["'pre+'", "cannot be read"]),
    "leading plus": ("+pre", ["'+pre'", "cannot be read"]),
    "open parenthesis": ("mix(alpha=0.5", ["from 'mix(alpha=0.5' on", "scheme(option=value, ...)+modifier"]),
    "closed parenthesis": ("mix alpha=0.5)", ["cannot be read"]),
    "nested parentheses": ("mix((alpha=0.5))", ["cannot be read"]),
    "value without option": ("mix(0.5)", ["'0.5'", "option=value"]),
    "trailing comma": ("mix(alpha=0.5,)", ["option=value"]),
    "two words": ("pre post", ["cannot be read"]),
    "code": ("__import__('os')", ["is not of the form option=value"]),
}


@pytest.mark.parametrize("case", BAD)
def test_a_bad_text_is_refused_with_the_thing_named_and_the_remedy(case: str) -> None:
    text, expected = BAD[case]
    with pytest.raises(PlacementError) as caught:
        Placement.parse(text)
    for part in expected:
        assert part in str(caught.value)


@pytest.mark.parametrize("value", [3, None, 0.25, ["pre"], b"pre"])
def test_what_is_no_text_is_refused(value: Any) -> None:
    with pytest.raises(PlacementError, match="a placement is a text such as"):
        Placement.parse(value)


def test_a_value_in_python_code_is_checked_like_a_text() -> None:
    with pytest.raises(PlacementError, match=r"in \[0, 1\]"):
        Placement.parse("mix(alpha=1.0000001)")
    assert Placement.parse("mix(alpha=1.0)").scheme.options == {"alpha": 1.0}
