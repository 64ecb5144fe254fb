"""A scheme that somebody registers is a scheme like the others, all the way to a checkpoint."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

import pytest
import torch
from models_reference import BLOCKS, Parts, Shape, llama_logits
from models_tools import generate, gradients_of, logits_of, tiny_config, tiny_model, token_ids
from transformers import AutoModelForCausalLM

import mixln
from mixln import MixLNLlamaForCausalLM
from mixln.placement import NORM, BlockPlan, Interval, QKVNormPlan, SublayerPlan
from mixln.placement.registry import SCHEMES


@pytest.fixture
def bypassed() -> Iterator[str]:
    """Post-LN with the block's input, times a factor, added before its last norm (B2T), and a normed embedding."""

    @mixln.register_scheme("test_bypassed", embedding_norm=NORM)
    def scheme(depth: int, num_layers: int, *, factor: Annotated[float, Interval(0, 1)] = 1.0) -> BlockPlan:
        del depth, num_layers
        return BlockPlan(SublayerPlan(output_norm=NORM), SublayerPlan(output_norm=NORM, bypass=factor))

    yield "test_bypassed(factor=0.5)"
    del SCHEMES["test_bypassed"]


def reference(x: torch.Tensor, depth: int, layers: int, p: Parts, factor: float = 0.5) -> torch.Tensor:
    del depth, layers
    middle = p.norm("post_attention_layernorm", x + p.attention(x))
    return p.norm("post_feedforward_layernorm", factor * x + middle + p.ffn(middle))


def test_a_new_scheme_works_end_to_end(bypassed: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert "test_bypassed" in mixln.schemes()
    model, ids = tiny_model(bypassed), token_ids()
    assert model.config.placement == bypassed

    monkeypatch.setitem(BLOCKS, bypassed, reference)
    weights = dict(model.state_dict())
    torch.testing.assert_close(
        logits_of(model, ids), llama_logits(weights, ids, Shape(4, 4, 2), bypassed), rtol=1e-4, atol=1e-4
    )

    assert all(gradient.isfinite().all() and gradient.any() for gradient in gradients_of(model, ids).values())
    assert generate(model, ids, max_new_tokens=3).shape == (2, 15)
    model.save_pretrained(tmp_path)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert torch.equal(logits_of(loaded, ids), logits_of(model, ids))


def test_a_scheme_is_gone_when_it_is_unregistered(tmp_path: Path, request: pytest.FixtureRequest) -> None:
    assert "test_bypassed" not in mixln.schemes()
    with pytest.raises(Exception, match="unknown scheme 'test_bypassed'"):
        tiny_config("test_bypassed")
    text = request.getfixturevalue("bypassed")
    tiny_model(text).save_pretrained(tmp_path)
    scheme = SCHEMES.pop("test_bypassed")
    try:
        with pytest.raises(Exception, match="unknown scheme 'test_bypassed'"):
            AutoModelForCausalLM.from_pretrained(tmp_path)
    finally:
        SCHEMES["test_bypassed"] = scheme


@pytest.fixture
def everything() -> Iterator[str]:
    """Every part of the formula at once, learned rho and gate included."""

    @mixln.register_scheme("test_everything", final_norm=None)
    def scheme(depth: int, num_layers: int) -> BlockPlan:
        sublayer = SublayerPlan(
            input_norm=NORM,
            gain=depth / num_layers,
            branch_norm=NORM,
            output_norm=NORM,
            residual_scale="learned",
            bypass=0.3,
            gate="output",
        )
        return BlockPlan(sublayer, sublayer)

    yield "test_everything"
    del SCHEMES["test_everything"]


def test_learned_parts_are_initialised_saved_and_loaded(everything: str, tmp_path: Path) -> None:
    fresh = MixLNLlamaForCausalLM(tiny_config(everything)).initialize(0)
    names = {name for name, _ in fresh.named_parameters() if name.startswith("model.layers.1.") and "proj" not in name}
    prefix = "model.layers.1."
    assert names == {
        f"{prefix}activation_gate.weight",
        f"{prefix}attention_residual.residual_scale",
        f"{prefix}feed_forward_residual.residual_scale",
        f"{prefix}input_layernorm.weight",
        f"{prefix}post_attention_layernorm.weight",
        f"{prefix}post_attention_residual_layernorm.weight",
        f"{prefix}pre_feedforward_layernorm.weight",
        f"{prefix}post_feedforward_layernorm.weight",
        f"{prefix}post_feedforward_residual_layernorm.weight",
    }
    for name, parameter in fresh.named_parameters():
        if parameter.ndim < 2:
            assert (parameter == (0 if "gate.weight" in name else 1)).all(), name

    model, ids = tiny_model(everything), token_ids()
    assert not torch.allclose(logits_of(model, ids), logits_of(fresh.eval(), ids), atol=1e-2)
    with torch.device("meta"):
        empty = MixLNLlamaForCausalLM(tiny_config(everything))
    empty.to_empty(device="cpu")
    for name, parameter in empty.initialize(0).named_parameters():
        assert torch.equal(parameter, fresh.get_parameter(name)), name

    assert all(gradient.isfinite().all() and gradient.any() for gradient in gradients_of(model, ids).values())
    model.save_pretrained(tmp_path)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert torch.equal(logits_of(loaded, ids), logits_of(model, ids))


@pytest.fixture(params=[True, False], ids=["per head", "full width"])
def normed_heads(request: pytest.FixtureRequest) -> Iterator[str]:
    @mixln.register_scheme("test_heads")
    def scheme(depth: int, num_layers: int) -> BlockPlan:
        del depth, num_layers
        qkv_norm = QKVNormPlan(("query", "key", "value"), per_head=request.param)
        return BlockPlan(SublayerPlan(input_norm=NORM, qkv_norm=qkv_norm), SublayerPlan(input_norm=NORM))

    yield "test_heads"
    del SCHEMES["test_heads"]


def test_norms_inside_the_attention_are_those_of_the_reference(
    normed_heads: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, ids = tiny_model(normed_heads), token_ids()
    attention = model.get_submodule("model.layers.0.self_attn")
    names = {name for name, _ in attention.named_parameters() if "norm" in name}
    assert names == {"q_norm.weight", "k_norm.weight", "v_norm.weight"}
    monkeypatch.setitem(BLOCKS, normed_heads, BLOCKS["pre"])
    expected = llama_logits(dict(model.state_dict()), ids, Shape(4, 4, 2), normed_heads)
    torch.testing.assert_close(logits_of(model, ids), expected, rtol=1e-4, atol=1e-4)
    assert not torch.allclose(expected, logits_of(tiny_model("pre"), ids), atol=1e-1)
