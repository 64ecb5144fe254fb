"""Another placement for a model that is there already."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from architecture_tools import CAUSAL, NAMES, STOCK, inputs_of, tiny_architecture, tiny_architecture_config
from models_tools import as_given, gradients_of, logits_of, randomise_gains, token_ids
from torch import nn
from transformers import AutoConfig, AutoModel, BertConfig, BertModel, PreTrainedModel

import mixln
from mixln import PlacementError, apply_placement, preview_placements
from mixln.errors import InputError
from mixln.models import ARCHITECTURES, PlacedConfig
from mixln.models.transformers_internals import enable_activation_checkpointing, has_activation_checkpointing
from mixln.placement.registry import SCHEMES

pytestmark = pytest.mark.filterwarnings("ignore::mixln.placement.PlacementWarning")


def stock_model(name: str, *, headless: bool = False, **changes: Any) -> PreTrainedModel:
    """A tiny model of transformers' own class, with random weights."""
    values = tiny_architecture_config(name, STOCK[name], **changes).to_dict()
    for key in ("model_type", "placement", "architectures"):
        values.pop(key, None)
    config = AutoConfig.for_model(ARCHITECTURES[name].stock_model_type, **values)
    # of two classifiers transformers' Auto class takes the one that is named, and fails if none is
    config.architectures = [ARCHITECTURES[name].whole_class.__bases__[-1].__name__]
    torch.manual_seed(0)
    model = (AutoModel if headless else ARCHITECTURES[name].auto_class).from_config(config, attn_implementation="sdpa")
    assert type(model).__module__.startswith("transformers.")
    randomise_gains(model)
    return model.eval()


@pytest.mark.parametrize("name", NAMES)
def test_the_stock_placement_leaves_the_model_as_it_is(name: str) -> None:
    model, ids = stock_model(name), inputs_of(name)
    before, logits = dict(model.named_parameters()), logits_of(model, ids)
    model, change = apply_placement(model, STOCK[name])
    assert change.keeps_function
    assert not change.differences
    assert change.added == change.removed == ()
    assert isinstance(model, ARCHITECTURES[name].whole_class)
    assert isinstance(model.config, PlacedConfig)
    after = dict(model.named_parameters())
    assert after.keys() == before.keys()
    assert all(after[parameter] is before[parameter] for parameter in after)
    assert torch.equal(logits_of(model, ids), logits)
    assert not model.training


@pytest.mark.parametrize("name", NAMES)
def test_a_new_placement_is_the_model_of_that_placement_and_reloads(name: str, tmp_path: Path) -> None:
    ids = inputs_of(name)
    for text in mixln.schemes():
        model = stock_model(name)
        matrices = {key: value for key, value in model.named_parameters() if value.ndim > 1}
        model, change = apply_placement(model, text)
        parameters = dict(model.named_parameters())
        assert all(parameters[key] is value for key, value in matrices.items()), text
        assert change.keeps_function == torch.equal(logits_of(model, ids), logits_of(stock_model(name), ids)), text
        # what is new is where training begins
        fresh = tiny_architecture(name, text)
        fresh.initialize(0)
        for key in change.added:
            assert torch.equal(parameters[key], fresh.get_parameter(key)), (text, key)
        assert parameters.keys() == dict(fresh.named_parameters()).keys()
        assert gradients_of(model, ids).keys() == parameters.keys()
        model.save_pretrained(tmp_path / text)
        loaded = ARCHITECTURES[name].auto_class.from_pretrained(tmp_path / text)
        assert loaded.config.placement == str(mixln.Placement.parse(text))
        assert torch.equal(logits_of(loaded, ids), logits_of(model, ids))


def test_new_weights_and_parts_that_somebody_replaced_do_not_keep_the_function() -> None:
    ids = token_ids()
    model = stock_model("llama")
    logits = logits_of(model, ids)
    drawn, change = apply_placement(model, "pre+gpas", seed=1)
    assert not change.keeps_function
    assert not torch.equal(logits_of(drawn, ids), logits)
    for place, other in (("norm", nn.Identity()), ("layers.1.input_layernorm", nn.LayerNorm(32))):
        model = stock_model("llama")
        base: Any = model.base_model
        base.set_submodule(place, other)
        placed, change = apply_placement(model, "pre")
        assert not change.keeps_function
        assert not torch.equal(logits_of(placed, ids), logits_of(model, ids))


@pytest.mark.parametrize("name", NAMES)
def test_what_is_told_beforehand_is_what_happens(name: str) -> None:
    ids = inputs_of(name)
    previews = preview_placements(stock_model(name))
    assert set(mixln.schemes()) <= set(previews)
    for text, preview in previews.items():
        model = stock_model(name)
        logits = logits_of(model, ids)
        model, change = apply_placement(model, text)
        assert (change.keeps_function, change.differences) == (preview.keeps_function, preview.differences)
        same = torch.allclose(logits_of(model, ids), logits, rtol=1e-6, atol=1e-6)
        assert same == change.keeps_function, text
        assert ("keeps" in str(change)) == change.keeps_function
    kept = {text for text, preview in previews.items() if preview.keeps_function}
    assert f"{STOCK[name]}+gpas" in kept
    assert f"{STOCK[name]}+scaled_init" in kept


def test_norms_keep_their_weights_by_place_and_not_by_name() -> None:
    model = stock_model("llama")
    layers: Any = model.get_submodule("model.layers")
    feed_forward_norm, attention_norm = layers[0].post_attention_layernorm.weight, layers[0].input_layernorm.weight
    model, _ = apply_placement(model, "sandwich")
    layers = model.get_submodule("model.layers")
    # in sandwich `post_attention_layernorm` is behind the attention: another norm of the same name
    assert layers[0].pre_feedforward_layernorm.weight is feed_forward_norm
    assert layers[0].input_layernorm.weight is attention_norm
    assert (layers[0].post_attention_layernorm.weight == 1).all()
    model, _ = apply_placement(model, "pre")
    layers = model.get_submodule("model.layers")
    assert layers[0].post_attention_layernorm.weight is feed_forward_norm


@pytest.mark.parametrize("name", NAMES)
def test_a_norm_of_another_kind_is_a_new_norm_wherever_it_stands(name: str) -> None:
    model = stock_model(name)
    model, _ = apply_placement(model, "peri+qk_norm+dyt(slope=0.5)")
    before = dict(model.named_parameters())
    with torch.no_grad():
        for parameter in before.values():
            if parameter.ndim < 2:
                parameter.fill_(0.123)
    model, change = apply_placement(model, "peri+qk_norm+dyt(slope=0.9)")
    slopes = {key: value for key, value in model.named_parameters() if key.endswith("alpha")}
    assert len(slopes) == 4 * 6 + 2
    assert all(value.item() == pytest.approx(0.9) for value in slopes.values())
    assert set(slopes) <= set(change.added)
    assert set(slopes) <= set(change.removed)
    # norms of the old kind are left as they were, for whoever still holds them
    assert all((value == 0.123).all() for key, value in before.items() if key in change.removed)
    model, back = apply_placement(model, STOCK[name])
    fresh = tiny_architecture(name, STOCK[name])
    fresh.initialize(0)
    for key in back.added:
        assert torch.equal(model.get_parameter(key), fresh.get_parameter(key)), key


def test_the_given_model_stays_what_it_is_and_shares_its_parameters() -> None:
    model, ids = stock_model("llama"), token_ids()
    kind, logits, names = type(model), logits_of(model, ids), dict(model.named_parameters())
    placed, change = apply_placement(model, "sandwich+qk_norm")
    assert type(model) is kind
    assert not isinstance(model.config, PlacedConfig)
    assert torch.equal(logits_of(model, ids), logits)
    shared = {key for key, value in placed.named_parameters() if any(value is own for own in names.values())}
    assert shared == dict(placed.named_parameters()).keys() - set(change.added)
    with torch.no_grad():
        placed.get_parameter("model.layers.0.mlp.up_proj.weight").zero_()
    assert not model.get_parameter("model.layers.0.mlp.up_proj.weight").any()


def test_activation_checkpointing_stays_on() -> None:
    model = stock_model("llama")
    enable_activation_checkpointing(model)
    model, _ = apply_placement(model, "mix(alpha=0.5)")
    assert has_activation_checkpointing(model)


def test_one_placement_after_the_other_and_back_is_the_same_model() -> None:
    model, ids = stock_model("llama"), token_ids()
    logits = logits_of(model, ids)
    for text in ("lns", "pre+gpas", "lns+scaled_embed", "pre"):
        model, _ = apply_placement(model, text)
    assert torch.equal(logits_of(model, ids), logits)


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("name", CAUSAL)
def test_the_head_gets_and_loses_its_bias_and_keeps_its_weight(name: str, tied: bool) -> None:
    model = stock_model(name, tie_word_embeddings=tied)
    head: Any = model.get_output_embeddings()
    before = head.weight.detach().clone()
    model, change = apply_placement(model, "none")
    assert "lm_head.bias" in change.added
    assert "a bias of the head" in change.differences
    head = model.get_output_embeddings()
    assert not head.bias.any()
    assert torch.equal(head.weight, before)
    assert (head.weight is model.get_input_embeddings().weight) is tied
    ids = token_ids()
    with torch.no_grad():
        head.bias.normal_()
    logits = logits_of(model, ids)
    model, change = apply_placement(model, "none+gpas")
    assert change.keeps_function
    assert torch.equal(logits_of(model, ids), logits)
    model, change = apply_placement(model, "pre")
    assert "lm_head.bias" in change.removed
    assert "no bias of the head" in change.differences
    assert not change.keeps_function


def test_taking_away_a_bias_of_the_head_changes_the_function(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(SCHEMES, "biased", replace(SCHEMES["pre"], name="biased", head_bias=True))
    model, ids = stock_model("llama"), token_ids()
    logits = logits_of(model, ids)
    model, change = apply_placement(model, "biased")
    assert (change.keeps_function, change.differences) == (True, ("a bias of the head",))
    assert torch.equal(logits_of(model, ids), logits)
    model, change = apply_placement(model, "pre")
    assert not change.keeps_function


def test_an_optimiser_goes_on_with_the_parameters_it_holds() -> None:
    model, ids = stock_model("llama"), token_ids()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    model, _ = apply_placement(model, "mix(alpha=0.5)")
    weight = model.get_parameter("model.layers.0.mlp.up_proj.weight")
    before = weight.detach().clone()
    model(input_ids=ids, labels=ids).loss.backward()
    optimizer.step()
    assert not torch.equal(weight, before)


@pytest.mark.parametrize("name", NAMES)
def test_a_seed_draws_the_weights_of_a_fresh_model(name: str) -> None:
    model = stock_model(name)
    model, _ = apply_placement(model, "deepnorm+scaled_embed", seed=7)
    fresh = ARCHITECTURES[name].whole_class(tiny_architecture_config(name, "deepnorm+scaled_embed")).initialize(7)
    expected = dict(fresh.named_parameters())
    for key, parameter in model.named_parameters():
        assert torch.equal(parameter, expected[key]), key


@pytest.mark.parametrize("name", NAMES)
def test_the_bare_stack_and_tied_heads_and_modes(name: str) -> None:
    ids = inputs_of(name)
    stack = stock_model(name, headless=True)
    given = as_given(ids)
    expected = stack(**given).last_hidden_state
    stack, _ = apply_placement(stack, STOCK[name])
    assert isinstance(stack, ARCHITECTURES[name].model_class)
    assert torch.equal(stack(**given).last_hidden_state, expected)
    tied = stock_model(name, tie_word_embeddings=True).train()
    tied, _ = apply_placement(tied, "post")
    assert tied.training
    if name in CAUSAL:
        head = tied.get_output_embeddings()
        assert head is not None
        assert head.weight is tied.get_input_embeddings().weight
    half = stock_model(name).to(torch.bfloat16)  # pyright: ignore[reportArgumentType]
    half, _ = apply_placement(half, "sandwich+qk_norm")
    assert {parameter.dtype for parameter in half.parameters()} == {torch.bfloat16}


def test_what_cannot_be_placed_is_refused_and_left_alone() -> None:
    bert = BertModel(BertConfig(num_hidden_layers=1, hidden_size=32, num_attention_heads=2, intermediate_size=32))
    with pytest.raises(PlacementError, match=r"a BertModel cannot be given a placement.*gpt2, llama"):
        apply_placement(bert, "mix")
    model, ids = stock_model("llama"), token_ids()
    logits = logits_of(model, ids)
    for text, reason in (("perhaps", "unknown scheme"), ("mix(post_layers=9)", "the model has 4 layers")):
        with pytest.raises(PlacementError, match=reason):
            apply_placement(model, text)
    assert type(model).__module__.startswith("transformers.")
    assert torch.equal(logits_of(model, ids), logits)


def test_a_model_with_adapters_is_refused() -> None:
    peft = pytest.importorskip("peft")
    inner = stock_model("llama")
    peft.get_peft_model(inner, peft.LoraConfig(target_modules=["q_proj"]))
    for action in (lambda: apply_placement(inner, "mix"), lambda: preview_placements(inner)):
        with pytest.raises(PlacementError, match="adapters"):
            action()
    placed = tiny_architecture("llama", "lns")
    peft.get_peft_model(placed, peft.LoraConfig(target_modules=["q_proj"]))
    with pytest.raises(InputError, match="adapters"):
        mixln.stock_model(placed)
