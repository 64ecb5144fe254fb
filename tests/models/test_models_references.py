"""Llama under every placement against the literal references."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from models_reference import BLOCKS, CASES, Parts, Shape, llama_logits, next_token_loss, norm_by_name
from models_tools import SCHEMES, assert_close_by_tensor, gradients_of, logits_of, tiny_model, token_ids
from torch import nn

import mixln
from mixln import Placement
from mixln.placement import Block, norm_factory

pytestmark = pytest.mark.filterwarnings("ignore::mixln.placement.PlacementWarning")


@pytest.mark.parametrize("scheme", SCHEMES)
def test_every_registered_scheme_has_a_reference(scheme: str) -> None:
    assert scheme in BLOCKS, "write the new scheme's equations into models_reference.py"


@pytest.mark.parametrize("layers", [1, 3, 6])
@pytest.mark.parametrize("text", CASES)
def test_logits_loss_and_gradients_are_those_of_the_equations(text: str, layers: int) -> None:
    if text == "mix(post_layers=3)" and layers < 3:
        pytest.skip("more Post-LN layers than layers")
    model = tiny_model(text, num_hidden_layers=layers)
    nn.Module.to(model, torch.float64)
    ids = token_ids()
    weights = {name: value.detach().clone().requires_grad_() for name, value in model.named_parameters()}
    logits = llama_logits(weights, ids, Shape(layers, heads=4, key_value_heads=2), text)
    loss = next_token_loss(logits, ids)
    gradients = torch.autograd.grad(loss, list(weights.values()))

    # Llama's RMSNorm and rotary embedding compute in float32 whatever the dtype around them
    torch.testing.assert_close(logits_of(model, ids), logits.detach(), rtol=1e-5, atol=1e-5)
    assert model(input_ids=ids, labels=ids).loss.item() == pytest.approx(loss.item(), rel=1e-6)
    assert_close_by_tensor(gradients_of(model, ids), dict(zip(weights, gradients, strict=True)), 1e-5)


@pytest.mark.parametrize("text", BLOCKS)
def test_references_differ_from_each_other(text: str) -> None:
    """So that agreement with one of them says something."""
    if text == "pre":
        pytest.skip("the others are compared with it")
    weights = tensors = dict(tiny_model("sandwich").state_dict())
    for layer in range(4):
        for name in ("attention_residual.residual_scale", "feed_forward_residual.residual_scale"):
            weights[f"model.layers.{layer}.{name}"] = torch.rand(32) + 0.5
        weights[f"model.layers.{layer}.activation_gate.weight"] = torch.ones(1)
    shape, ids = Shape(4, 4, 2), token_ids()
    assert not torch.allclose(
        llama_logits(weights, ids, shape, text), llama_logits(tensors, ids, shape, "pre"), rtol=1e-2
    )


@pytest.mark.parametrize("text", SCHEMES)
def test_scaled_embed_multiplies_the_embedding_by_root_d(text: str) -> None:
    model = tiny_model(f"{text}+scaled_embed")
    weights, ids, shape = model.state_dict(), token_ids(), Shape(4, 4, 2)
    logits = logits_of(model, ids)
    expected = llama_logits(weights, ids, shape, text, embedding_factor=32**0.5)
    torch.testing.assert_close(logits, expected, rtol=1e-4, atol=1e-4)
    if model.config.stack_plan.embedding_norm is None:
        assert not torch.allclose(logits, llama_logits(weights, ids, shape, text), rtol=1e-2, atol=1e-2)


@pytest.mark.parametrize("text", SCHEMES)
def test_scaled_init_changes_the_weights_and_not_the_function(text: str) -> None:
    plain, scaled = tiny_model(text), tiny_model(f"{text}+scaled_init")
    ids = token_ids()
    assert not torch.allclose(logits_of(plain, ids), logits_of(scaled, ids), rtol=1e-2)
    scaled.load_state_dict(plain.state_dict())
    assert torch.equal(logits_of(plain, ids), logits_of(scaled, ids))


@pytest.mark.parametrize("text", CASES)
def test_a_block_around_anyones_modules_is_the_reference_too(text: str) -> None:
    torch.manual_seed(0)
    layers, width = 6, 16
    scheme, options = CASES[text]
    for depth, plan in enumerate(Placement.parse(text).plan(layers).blocks, start=1):
        # norms inside the attention are the attention's own affair here
        plan = replace(plan, attention=replace(plan.attention, qkv_norm=None))
        attention, ffn = nn.Sequential(nn.Linear(width, width), nn.Tanh()), nn.Linear(width, width)
        block = Block(plan, attention, ffn, norm_factory(width), width).double()
        weights = dict(block.named_parameters())
        for name, parameter in weights.items():
            if not name.startswith(("attention.", "feed_forward.")):
                nn.init.uniform_(parameter, 0.5, 1.5)
        parts = Parts(
            attention, ffn, lambda name, h, w=weights, **options: norm_by_name(name, h, w, 1e-6, **options), weights
        )
        x = torch.randn(2, 3, width, dtype=torch.float64)
        expected = BLOCKS[scheme](x, depth, layers, parts, **options)
        torch.testing.assert_close(block(x), expected, rtol=1e-12, atol=1e-12)


def test_mix_at_its_ends_is_pre_and_post_as_a_model() -> None:
    ids = token_ids()
    for mixed, plain in (("mix(alpha=0)", "pre"), ("mix(alpha=1)", "post"), ("mix(post_layers=4)", "post")):
        assert torch.equal(logits_of(tiny_model(mixed), ids), logits_of(tiny_model(plain), ids))
    assert not torch.allclose(logits_of(tiny_model("pre"), ids), logits_of(tiny_model("post"), ids), rtol=1e-2)


NORMS = {
    "pre": {"input_layernorm", "post_attention_layernorm"},
    "lns": {"input_layernorm", "post_attention_layernorm"},
    "post": {"post_attention_layernorm", "post_feedforward_layernorm"},
    "deepnorm": {"post_attention_layernorm", "post_feedforward_layernorm"},
    "sandwich": {
        "input_layernorm",
        "post_attention_layernorm",
        "pre_feedforward_layernorm",
        "post_feedforward_layernorm",
    },
}


@pytest.mark.parametrize("text", NORMS)
def test_parameters_have_the_names_of_stock_llama_and_the_schemes_norms(text: str) -> None:
    matrices = {f"self_attn.{name}_proj" for name in "qkvo"} | {f"mlp.{name}_proj" for name in ("gate", "up", "down")}
    expected = {"model.embed_tokens.weight", "model.norm.weight", "lm_head.weight"}
    expected |= {f"model.layers.{i}.{name}.weight" for i in range(4) for name in matrices | NORMS[text]}
    assert set(tiny_model(text).state_dict()) == expected


def test_mix_has_the_norms_of_each_kind_of_layer() -> None:
    names = set(tiny_model("mix(post_layers=1)").state_dict())
    assert {name.split(".")[3] for name in names if name.startswith("model.layers.0.") and "norm" in name} == NORMS[
        "post"
    ]
    assert {name.split(".")[3] for name in names if name.startswith("model.layers.1.") and "norm" in name} == NORMS[
        "pre"
    ]


def test_a_final_norm_stands_before_the_head_in_every_scheme_but_none() -> None:
    for text in mixln.schemes():
        names = dict(tiny_model(text).named_parameters())
        assert ("model.norm.weight" in names) == (text != "none")
