"""Weights of Llama models: by (seed, parameter name), with the placement's standard deviations."""

from __future__ import annotations

import copy
import itertools
from pathlib import Path

import pytest
import torch
from cover import scheme_and_rest, shared_out
from models_sharded import WORLD, initialise_shards
from models_tools import (
    ALL,
    SCHEMES,
    assert_same_tensors,
    tensors_of,
    tiny_config,
    tiny_model,
    token_ids,
)
from processes import start_together
from torch import nn
from torch.utils.hooks import RemovableHandle
from transformers import AutoModelForCausalLM, PreTrainedModel

from mixln import MixLNLlamaForCausalLM, MixLNLlamaModel, PlacementError

pytestmark = pytest.mark.filterwarnings("ignore::mixln.placement.PlacementWarning")


def matrices(model: nn.Module) -> dict[str, torch.Tensor]:
    return {name: tensor for name, tensor in model.state_dict().items() if tensor.ndim == 2}


def std(tensor: torch.Tensor) -> float:
    return tensor.double().pow(2).mean().sqrt().item()


@shared_out("text", ALL, share=4, of=5, factors=scheme_and_rest)  # the others: test_models_registry.py
def test_placements_share_their_draws_up_to_the_standard_deviation(text: str) -> None:
    reference = matrices(MixLNLlamaForCausalLM(tiny_config("pre")).initialize(1))
    drawn = matrices(MixLNLlamaForCausalLM(tiny_config(text)).initialize(1))
    assert drawn.keys() == reference.keys()
    own_std = "deepnorm" in text or "scaled_init" in text
    for name, tensor in drawn.items():
        ratio = std(tensor) / std(reference[name]) if own_std else 1.0
        tolerance = 1e-5 if own_std else 0.0
        torch.testing.assert_close(tensor, reference[name] * ratio, rtol=tolerance, atol=0, msg=name)


@pytest.mark.parametrize("text", SCHEMES)
def test_norms_begin_at_one_and_biases_at_zero(text: str) -> None:
    for name, parameter in MixLNLlamaForCausalLM(tiny_config(text)).initialize(0).named_parameters():
        start = 0 if name.endswith("bias") else 1
        assert parameter.ndim == 2 or (parameter == start).all(), name


def test_two_seeds_differ_in_every_matrix() -> None:
    one, two = (matrices(MixLNLlamaForCausalLM(tiny_config()).initialize(seed)) for seed in (1, 2))
    for name, tensor in one.items():
        assert not torch.equal(tensor, two[name]), name


def test_the_seed_alone_decides_and_the_global_generator_is_left_alone() -> None:
    model = MixLNLlamaForCausalLM(tiny_config())
    drawn = []
    for global_seed in (5, 6):
        torch.manual_seed(global_seed)
        state = torch.get_rng_state()
        drawn.append(copy.deepcopy(tensors_of(model.initialize(1))))
        assert torch.equal(torch.get_rng_state(), state)
    for name, tensor in drawn[0].items():
        assert torch.equal(tensor, drawn[1][name]), name


def test_a_deeper_model_has_the_draws_of_a_shallower_one() -> None:
    shallow = matrices(MixLNLlamaForCausalLM(tiny_config(num_hidden_layers=2)).initialize(1))
    deep = matrices(MixLNLlamaForCausalLM(tiny_config(num_hidden_layers=6)).initialize(1))
    for name, tensor in shallow.items():
        assert torch.equal(tensor, deep[name]), name


@pytest.mark.parametrize("text", SCHEMES)
def test_the_base_model_alone_has_the_draws_it_has_under_a_head(text: str) -> None:
    base = MixLNLlamaModel(tiny_config(text)).initialize(1)
    assert_same_tensors(base, MixLNLlamaForCausalLM(tiny_config(text)).initialize(1).model)


def construct(seed: int | None) -> PreTrainedModel:
    if seed is not None:
        torch.manual_seed(seed)
    return AutoModelForCausalLM.from_config(tiny_config("mix"))


def test_construction_follows_the_global_seed() -> None:
    one, again = construct(3), construct(3)
    assert_same_tensors(one, again)
    following = construct(None)
    for name, tensor in matrices(one).items():
        assert not torch.equal(tensor, matrices(following)[name]), name


def test_a_head_draws_nothing_anew_for_the_model_below_it() -> None:
    torch.manual_seed(3)
    base = MixLNLlamaModel(tiny_config("mix"))
    torch.manual_seed(3)
    assert_same_tensors(base, MixLNLlamaForCausalLM(tiny_config("mix")).model)


def test_construction_draws_the_stated_standard_deviations() -> None:
    torch.manual_seed(0)
    config = tiny_config("pre", hidden_size=64, vocab_size=500, initializer_range=0.02, embedding_std=0.632)
    for name, tensor in matrices(MixLNLlamaForCausalLM(config)).items():
        assert std(tensor) == pytest.approx(0.632 if "embed" in name else 0.02, rel=0.1), name


WIDE = {"hidden_size": 64, "intermediate_size": 96, "num_key_value_heads": 4, "initializer_range": 0.02}


@pytest.mark.parametrize("layers", [2, 6])
def test_deepnorm_gains_are_measured_on_the_weights(layers: int) -> None:
    model = MixLNLlamaForCausalLM(tiny_config("deepnorm", num_hidden_layers=layers, **WIDE)).initialize(0)
    gain = (8 * layers) ** -0.25
    assert gain < 1
    for name, weight in matrices(model).items():
        if "layers" in name:
            xavier = (2 / sum(weight.shape)) ** 0.5
            expected = xavier * (1 if "q_proj" in name or "k_proj" in name else gain)
        else:
            expected = 0.02
        assert std(weight) == pytest.approx(expected, rel=0.05), name


@pytest.mark.parametrize(
    ("text", "divided_from"), [("pre", 0), ("sandwich", 0), ("mix(post_layers=2)", 2), ("post", 4), ("deepnorm", 4)]
)
def test_scaled_init_is_measured_on_the_weights(text: str, divided_from: int) -> None:
    model = MixLNLlamaForCausalLM(tiny_config(f"{text}+scaled_init", **WIDE)).initialize(0)
    small = (2 / (5 * 64)) ** 0.5
    for name, weight in matrices(model).items():
        writes = name.endswith(("o_proj.weight", "down_proj.weight"))
        expected = small / 8**0.5 if writes and int(name.split(".")[2]) >= divided_from else small
        assert std(weight) == pytest.approx(expected, rel=0.05), name


@pytest.mark.parametrize("tied", [True, False])
def test_the_embedding_has_a_standard_deviation_of_its_own(tied: bool) -> None:
    for text, embedding_std, expected in (
        ("pre", None, 0.02),
        ("pre", 0.632, 0.632),
        ("pre+scaled_init", None, (2 / (5 * 64)) ** 0.5),
        ("pre+scaled_init", 0.1, 0.1),
        ("deepnorm", None, 0.02),
        ("post", 1, 1.0),
    ):
        config = tiny_config(text, embedding_std=embedding_std, tie_word_embeddings=tied, **WIDE)
        model = MixLNLlamaForCausalLM(config).initialize(0)
        assert config.initial_embedding_std == pytest.approx(expected)
        assert std(model.model.embed_tokens.weight) == pytest.approx(expected, rel=0.05)
        assert (std(model.lm_head.weight) == pytest.approx(expected, rel=0.05)) == (tied or embedding_std is None)


def test_a_model_on_the_meta_device_cannot_be_initialised() -> None:
    with torch.device("meta"):
        model = MixLNLlamaForCausalLM(tiny_config())
    with pytest.raises(PlacementError, match=r"is on the meta device: call to_empty\(device=...\) before initialising"):
        model.initialize(0)


def measured_gains(model: MixLNLlamaForCausalLM) -> list[float]:
    """Each sublayer's input over the output of the norm before it, by hooks in a forward."""
    norms: list[torch.Tensor] = []
    inputs: list[torch.Tensor] = []

    def keep_output(_module: nn.Module, _args: object, output: torch.Tensor) -> None:
        norms.append(output)

    def keep_input(_module: nn.Module, args: tuple[torch.Tensor, ...], kwargs: dict[str, torch.Tensor]) -> None:
        inputs.append(kwargs["hidden_states"] if "hidden_states" in kwargs else args[0])

    hooks: list[RemovableHandle] = []
    for name, module in model.named_modules():
        if name.endswith("_layernorm"):
            hooks.append(module.register_forward_hook(keep_output))
        elif name.endswith((".self_attn", ".mlp")):
            hooks.append(module.register_forward_pre_hook(keep_input, with_kwargs=True))
    with torch.no_grad():
        model(input_ids=token_ids())
    for hook in hooks:
        hook.remove()
    ratios = [after / before for after, before in zip(inputs, norms, strict=True)]
    for ratio in ratios:
        torch.testing.assert_close(ratio, ratio.median().expand_as(ratio), rtol=1e-4, atol=0)
    return [ratio.median().item() for ratio in ratios]


def test_the_lns_scale_reaches_every_sublayer_however_the_model_came_about(tmp_path: Path) -> None:
    expected = pytest.approx([depth**-0.5 for depth in range(1, 7) for _ in range(2)], rel=1e-5)
    model = tiny_model("lns", num_hidden_layers=6)
    assert measured_gains(model) == expected
    assert measured_gains(copy.deepcopy(model)) == expected

    with torch.device("meta"):
        empty = MixLNLlamaForCausalLM(tiny_config("lns", num_hidden_layers=6))
    empty.to_empty(device="cpu")
    assert measured_gains(empty.initialize(0)) == expected

    model.save_pretrained(tmp_path)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert isinstance(loaded, MixLNLlamaForCausalLM)
    assert measured_gains(loaded) == expected


def test_pre_has_no_scale() -> None:
    assert measured_gains(tiny_model("pre")) == [1.0] * 8


@pytest.mark.parametrize("layers", [2, 5])
def test_deepnorm_scales_the_stream_by_the_fourth_root_of_2l(layers: int) -> None:
    for text, rho in (("deepnorm", (2 * layers) ** 0.25), ("deepnorm(residual_scale=2.5)", 2.5)):
        model = tiny_model(text, num_hidden_layers=layers)
        for name, parameter in model.named_parameters():
            if name.endswith(("o_proj.weight", "down_proj.weight")):
                nn.init.zeros_(parameter)
        for layer in model.model.layers:
            layer.add_module("post_attention_layernorm", nn.Identity())
            layer.add_module("post_feedforward_layernorm", nn.Identity())
        with torch.no_grad():
            states = model(input_ids=token_ids(), output_hidden_states=True).hidden_states
        for before, after in itertools.pairwise(states[:-1]):
            torch.testing.assert_close(after, before * rho**2)


@pytest.mark.slow
def test_sharded_over_two_processes_the_weights_are_those_of_one(tmp_path: Path) -> None:
    texts = ["mix(alpha=0.5)", "lns", "deepnorm", "sandwich+scaled_init"]
    start_together(initialise_shards, str(tmp_path), texts, processes=WORLD)
    for number, text in enumerate(texts):
        expected = tensors_of(MixLNLlamaForCausalLM(tiny_config(text)).initialize(7))
        for rank in range(WORLD):
            gathered = torch.load(tmp_path / f"{number}-{rank}.pt", weights_only=True)
            assert gathered.keys() == expected.keys()
            for name, tensor in expected.items():
                assert torch.equal(tensor, gathered[name]), f"{text}: {name}"
