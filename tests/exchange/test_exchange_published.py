"""Checkpoints of the published training code, named as that code names its schemes."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from models_reference import BLOCKS, CASES, llama_logits, mix_gpas
from models_tools import logits_of, token_ids
from safetensors.torch import load_file, save_file
from test_exchange_convert import SHAPE, published_weights, write_folder
from transformers import AutoModelForCausalLM

from mixln import Placement
from mixln.errors import InputError
from mixln.exchange.convert import convert_published, save_converted
from mixln.exchange.published import PUBLISHED_NORM_TYPES, published_placement

NUMBER = 3

EQUATIONS: dict[str, tuple[str, dict[str, float]]] = {
    "pre": ("pre", {}),
    "post": ("post", {}),
    "post_pre": ("mix", {"post_layers": NUMBER}),
    "deeppost": ("deepnorm", {"residual_scale": 8**0.5}),
    "sandwich": ("sandwich", {}),
    "scale_pre": ("pre", {}),
    "scale_post_pre": ("mix", {"post_layers": NUMBER}),
    "lns": ("lns", {}),
    "pre_gpas": ("pre+gpas", {}),
    "lns_gpas": ("pre+gpas", {}),
    "sandwich_gpas": ("sandwich+gpas", {}),
    "deeppost_gpas": ("deepnorm+gpas", {}),
    "post_pre_gpas": ("mix+gpas", {"post_layers": NUMBER}),
}
"""What a layer of the published code computes, by its name there: the reference and its options."""


def number_for(norm_type: str) -> int | None:
    return NUMBER if "post_pre" in norm_type else None


def published_names(weights: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The gates as the GPAS code has them: another name, and a lone number."""
    return {
        name.replace("activation_gate.weight", "gpas_block.gate"): tensor.reshape(())
        if name.endswith("activation_gate.weight")
        else tensor
        for name, tensor in weights.items()
    }


def test_every_published_name_has_equations_here() -> None:
    assert list(EQUATIONS) == list(PUBLISHED_NORM_TYPES)


@pytest.mark.parametrize("norm_type", EQUATIONS)
@pytest.mark.parametrize("case", [str.lower, str.upper])
def test_a_checkpoint_gives_the_equations_logits(
    norm_type: str, case: type, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(BLOCKS, "mix+gpas", mix_gpas)
    monkeypatch.setitem(CASES, "published", EQUATIONS[norm_type])
    placement = published_placement(case(norm_type), number_for(norm_type))
    weights = published_weights(placement)
    source = write_folder(tmp_path / "published", published_names(weights))
    if "gpas" in norm_type:
        assert load_file(source / "model.safetensors")["model.layers.3.gpas_block.gate"].shape == ()
    save_converted(source, tmp_path / "out", placement)
    model, ids = AutoModelForCausalLM.from_pretrained(tmp_path / "out"), token_ids()
    assert model.config.placement == str(Placement.parse(placement))
    expected = llama_logits(weights, ids, SHAPE, "published")
    torch.testing.assert_close(logits_of(model, ids), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("post_num", [0, 1, 2, 4])
def test_another_number_of_post_layers_than_the_checkpoints_is_refused(post_num: int, tmp_path: Path) -> None:
    source = write_folder(tmp_path / "published", published_weights("mix(post_layers=3)"))
    with pytest.raises(InputError, match="state another `placement`, or `norm_type` and `post_num`"):
        convert_published(source, published_placement("post_pre", post_num))


def test_gates_are_left_over_where_the_placement_has_none(tmp_path: Path) -> None:
    source = write_folder(tmp_path / "published", published_names(published_weights("pre+gpas")))
    with pytest.raises(InputError, match=r"left over \(4\): model\.layers\.0\.gpas_block\.gate"):
        convert_published(source, "pre")
    with pytest.raises(InputError, match=r"missing \(4\): model\.layers\.0\.activation_gate\.weight"):
        convert_published(write_folder(source, published_weights("pre")), "pre+gpas")


def test_a_gate_for_each_channel_is_no_gate_of_that_code(tmp_path: Path) -> None:
    weights = published_names(published_weights("pre+gpas"))
    source = write_folder(tmp_path / "published", weights)
    save_file(weights | {"model.layers.2.gpas_block.gate": torch.zeros(32)}, source / "model.safetensors")
    with pytest.raises(InputError, match=r"left over \(1\): model\.layers\.2\.gpas_block\.gate"):
        convert_published(source, "pre+gpas")


@pytest.mark.parametrize("placement", ["lns", "pre", "mix(post_layers=2)"])
def test_layers_without_norms_are_refused_with_the_reason(placement: str, tmp_path: Path) -> None:
    """NORM_TYPE=LNS in the official repository, where the name was lower-cased before it was compared with 'LNS'."""
    weights = published_weights("pre")
    bare = {name: tensor for name, tensor in weights.items() if "layernorm" not in name}
    source = write_folder(tmp_path / "published", bare)
    with pytest.raises(InputError, match=r"None of its layers has a norm.*return their input"):
        convert_published(source, placement)


@pytest.mark.parametrize(
    ("norm_type", "post_num", "message"),
    [
        ("post_pr", 3, "Did you mean 'post_pre'"),
        ("admin", None, "state the `placement`"),
        ("post_pre", None, "needs `post_num`"),
        ("scale_post_pre", None, "needs `post_num`"),
        ("lns", 3, "leave `post_num` out"),
        ("post_pre", -1, "must not be negative"),
    ],
)
def test_what_the_published_code_does_not_have_is_refused(norm_type: str, post_num: int | None, message: str) -> None:
    with pytest.raises(InputError, match=message):
        published_placement(norm_type, post_num)
