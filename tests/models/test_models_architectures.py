"""What holds for every registered architecture under every registered placement."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from architecture_tools import (
    CAUSAL_PAIRS,
    NAMES,
    PAIRS,
    STOCK,
    inputs_of,
    logits_written_out,
    stack_of,
    tiny_architecture,
    tiny_architecture_config,
)
from cover import shared_out
from models_reference import BLOCKS, CASES
from models_tools import (
    as_given,
    assert_close_by_tensor,
    assert_same_tensors,
    generate,
    gradients_of,
    labels_of,
    logits_of,
    token_ids,
)
from transformers import AutoConfig

import mixln
from mixln import models
from mixln.models import ARCHITECTURES, PlacedPreTrainedModel
from mixln.placement import FusedRoles

pytestmark = pytest.mark.filterwarnings("ignore::mixln.placement.PlacementWarning")


def of_every_pair(share: int, pairs: list[tuple[str, str]] = PAIRS) -> pytest.MarkDecorator:
    """Of the 7 tests over every pair, the fast suite runs each with a part of the pairs."""
    return shared_out(("name", "text"), pairs, share=share, of=7)


def test_architectures_are_found_by_being_there() -> None:
    assert set(NAMES) >= {"llama"}
    for name, found in ARCHITECTURES.items():
        assert (Path(models.__file__).parent / "architectures" / f"{name}.py").is_file()
        assert getattr(mixln, found.config_class.__name__) is found.config_class
        assert getattr(mixln, found.whole_class.__name__) is found.whole_class
    with pytest.raises(AttributeError, match="MixLNNothingConfig"):
        _ = mixln.MixLNNothingConfig  # pyright: ignore[reportAttributeAccessIssue]


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("tied", [True, False])
def test_the_stock_placement_is_the_stock_model(name: str, tied: bool, tmp_path: Path) -> None:
    """Parameter names, logits and gradients are those of transformers' own class, which opens the folder."""
    model, ids = tiny_architecture(name, STOCK[name], tie_word_embeddings=tied), inputs_of(name)
    model.save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    config["model_type"] = ARCHITECTURES[name].stock_model_type
    (tmp_path / "config.json").write_text(json.dumps(config))
    opened: Any = ARCHITECTURES[name].auto_class.from_pretrained(tmp_path, output_loading_info=True)
    stock, info = opened
    assert type(stock).__module__.startswith("transformers.")
    assert not info["missing_keys"]
    assert not info["unexpected_keys"]
    torch.testing.assert_close(logits_of(stock, ids), logits_of(model, ids), rtol=1e-5, atol=1e-5)
    assert_close_by_tensor(gradients_of(model, ids), gradients_of(stock, ids), 1e-5)


@pytest.mark.parametrize("name", NAMES)
def test_stock_classes_refuse_other_placements(name: str, tmp_path: Path) -> None:
    for text in ("lns", "mix(alpha=0.5)", "none"):
        tiny_architecture(name, text).save_pretrained(tmp_path / text)
        config = json.loads((tmp_path / text / "config.json").read_text())
        config["model_type"] = ARCHITECTURES[name].stock_model_type
        (tmp_path / text / "config.json").write_text(json.dumps(config))
        with pytest.raises(Exception, match="mixln placement"):
            ARCHITECTURES[name].auto_class.from_pretrained(tmp_path / text)


@pytest.mark.parametrize(("name", "text"), [pair for pair in PAIRS if pair[1] in CASES])
def test_logits_are_those_of_the_equations_around_the_architectures_own_parts(name: str, text: str) -> None:
    model, ids = tiny_architecture(name, text), inputs_of(name)
    scheme, options = CASES[text]
    with torch.no_grad():
        expected = logits_written_out(model, ids, scheme, **options)
    scale = expected.abs().max().item()
    torch.testing.assert_close(logits_of(model, ids), expected, rtol=0, atol=1e-5 * scale)


@pytest.mark.parametrize("name", NAMES)
def test_placements_differ(name: str) -> None:
    """So that agreement with one reference says something."""
    ids = inputs_of(name)
    plain = logits_of(tiny_architecture(name, "pre"), ids)
    for text in BLOCKS:
        if text not in ("pre", "pre+gpas"):
            assert not torch.allclose(plain, logits_of(tiny_architecture(name, text), ids), rtol=1e-2, atol=1e-2), text


@of_every_pair(0)
def test_meta_init_is_normal_init(name: str, text: str) -> None:
    config = tiny_architecture_config(name, text)
    with torch.device("meta"):
        model = ARCHITECTURES[name].auto_class.from_config(config)
    assert all(parameter.is_meta for parameter in model.parameters())
    model.to_empty(device="cpu")
    with torch.no_grad():
        for tensor in (*model.parameters(), *model.buffers()):
            tensor.fill_(torch.nan)
    model.initialize(3)
    assert_same_tensors(model, ARCHITECTURES[name].auto_class.from_config(config).initialize(3))


@of_every_pair(1)
def test_saving_and_loading_is_bitwise(name: str, text: str, tmp_path: Path) -> None:
    model, ids = tiny_architecture(name, text), inputs_of(name)
    model.save_pretrained(tmp_path)
    loaded = ARCHITECTURES[name].auto_class.from_pretrained(tmp_path)
    assert isinstance(loaded, ARCHITECTURES[name].whole_class)
    assert_same_tensors(model, loaded)
    assert torch.equal(logits_of(loaded, ids), logits_of(model, ids))
    config, own = AutoConfig.from_pretrained(tmp_path), model.config
    assert config.stack_plan == own.stack_plan
    assert getattr(config, "layer_types", None) == getattr(own, "layer_types", None)


@of_every_pair(2)
def test_every_parameter_gets_a_finite_gradient(name: str, text: str) -> None:
    model = tiny_architecture(name, text)
    gradients = gradients_of(model, inputs_of(name))
    assert gradients.keys() == dict(model.named_parameters()).keys()
    for parameter, gradient in gradients.items():
        assert gradient.isfinite().all(), parameter
        assert gradient.any(), parameter


@of_every_pair(3, CAUSAL_PAIRS)
def test_cached_steps_give_the_uncached_logits(name: str, text: str) -> None:
    model, ids = tiny_architecture(name, text), token_ids(2, 9)
    expected = logits_of(model, ids)
    cache: Any = None
    with torch.no_grad():
        for start, stop in ((0, 4), (4, 5), (5, 6), (6, 9)):
            output = model(input_ids=ids[:, start:stop], past_key_values=cache, use_cache=True)
            cache = output.past_key_values
            torch.testing.assert_close(
                output.logits, expected[:, start:stop], rtol=0, atol=1e-5 * expected.abs().max().item()
            )
    assert cache.get_seq_length() == 9
    generated = generate(model, ids, max_new_tokens=4)
    assert torch.equal(generated[:, :9], ids)


@of_every_pair(4)
def test_eager_attention_is_sdpa(name: str, text: str) -> None:
    model, ids = tiny_architecture(name, text), inputs_of(name)
    expected = logits_of(model, ids)
    model.set_attn_implementation("eager")
    torch.testing.assert_close(logits_of(model, ids), expected, rtol=0, atol=1e-5 * expected.abs().max().item())
    with torch.no_grad():
        output = model(**as_given(ids), output_attentions=True, output_hidden_states=True)
    assert len(output.attentions) == 4
    assert len(output.hidden_states) == 5
    tokens = output.hidden_states[0].shape[1]
    torch.testing.assert_close(output.attentions[2].sum(-1), torch.ones(2, 4, tokens))


@of_every_pair(5, CAUSAL_PAIRS)
def test_left_padding_changes_nothing(name: str, text: str) -> None:
    model, row = tiny_architecture(name, text), token_ids(1, 7)
    ids, mask = torch.cat((torch.zeros(1, 2, dtype=torch.long), row), 1), torch.tensor([[0] * 2 + [1] * 7])
    positions = (mask.cumsum(-1) - 1).clamp(min=0)
    expected = logits_of(model, row)
    found = logits_of(model, ids, attention_mask=mask, position_ids=positions)[:, 2:]
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5 * expected.abs().max().item())


@of_every_pair(6)
def test_gradient_checkpointing_changes_no_gradient(name: str, text: str) -> None:
    model, ids = tiny_architecture(name, text).train(), inputs_of(name)
    expected = gradients_of(model, ids)
    model.gradient_checkpointing_enable()
    assert_close_by_tensor(gradients_of(model, ids), expected, 1e-5)


@pytest.mark.parametrize("name", NAMES)
def test_draws_are_shared_between_placements_and_follow_their_rules(name: str) -> None:
    """Matrices of one rule are equal; DeepNorm's have the gain of their role, each part of a fused one its own."""
    layers = 4
    base, other = (
        dict(ARCHITECTURES[name].whole_class(tiny_architecture_config(name, text)).initialize(5).named_parameters())
        for text in ("pre", "deepnorm")
    )
    post = ARCHITECTURES[name].auto_class.from_config(tiny_architecture_config(name, "post")).initialize(5)
    prefix = f"{post.base_model_prefix}."
    for parameter_name, parameter in post.named_parameters():
        if parameter.ndim == 2:
            assert torch.equal(parameter, base[parameter_name]), parameter_name
    for pattern, role in ARCHITECTURES[name].whole_class.parameter_roles.items():
        if "*" not in pattern:
            continue
        parameter_name = prefix + pattern.replace("*", "2")
        roles = role.roles if isinstance(role, FusedRoles) else (role,)
        dim = role.dim if isinstance(role, FusedRoles) else 0
        for one, drawn, plain in zip(
            roles,
            other[parameter_name].chunk(len(roles), dim),
            base[parameter_name].chunk(len(roles), dim),
            strict=True,
        ):
            gain = 1.0 if one in ("query", "key") else (8 * layers) ** -0.25
            std = gain * (2 / sum(drawn.shape)) ** 0.5
            torch.testing.assert_close(drawn, plain / 0.15 * std)


@pytest.mark.parametrize("name", NAMES)
def test_initialising_leaves_the_global_generator_alone(name: str) -> None:
    model = tiny_architecture(name, "mix")
    state = torch.get_rng_state()
    model.initialize(1)
    assert torch.equal(torch.get_rng_state(), state)
    for parameter_name, parameter in model.named_parameters():
        if parameter_name.endswith("bias"):
            assert not parameter.any(), parameter_name


@pytest.mark.parametrize("name", NAMES)
def test_pruned_layers_keep_their_depth(name: str, tmp_path: Path) -> None:
    config = tiny_architecture_config(name, "lns", num_hidden_layers=2, placement_depths=[1, 4], placement_num_layers=6)
    model = ARCHITECTURES[name].auto_class.from_config(config).initialize(0)
    model.save_pretrained(tmp_path)
    loaded: Any = ARCHITECTURES[name].auto_class.from_pretrained(tmp_path)
    for one in (model, loaded):
        _, blocks = stack_of(one)
        assert [block.attention_residual.gain for block in blocks] == [1.0, 0.5]
    assert torch.equal(logits_of(loaded.eval(), inputs_of(name)), logits_of(model.eval(), inputs_of(name)))


@pytest.mark.parametrize("name", NAMES)
def test_bad_sizes_are_refused(name: str) -> None:
    with pytest.raises(Exception, match=r"num_attention_heads|num_key_value_heads|head"):
        tiny_architecture_config(name, "pre", num_attention_heads=5)
    with pytest.raises(Exception, match="unknown scheme"):
        tiny_architecture_config(name, "perhaps")


@pytest.mark.parametrize("text", ["pre", "pre+qk_norm", "hybrid"])
def test_olmo_clips_query_key_and_value_under_every_placement(text: str) -> None:
    ids = token_ids()
    free, clipped = (tiny_architecture("olmo", text, clip_qkv=limit) for limit in (None, 0.05))
    assert not torch.allclose(logits_of(free, ids), logits_of(clipped, ids), atol=1e-2)
    # what is clipped is what attention works with, behind any norm; a rotation mixes two channels of a key
    with torch.no_grad():
        cache: Any = clipped(input_ids=ids, use_cache=True).past_key_values
    for layer in cache.layers:
        assert layer.values.abs().max() <= 0.05
        assert layer.keys.abs().max() <= 0.05 * 2**0.5 + 1e-6


def test_gpt2_refuses_what_it_would_leave_out() -> None:
    with pytest.raises(Exception, match="add_cross_attention"):
        tiny_architecture_config("gpt2", "pre", add_cross_attention=True)


@pytest.mark.parametrize("text", ["pre", "pre+qk_norm"])
def test_gpt2_upcasts_its_scores_under_every_placement(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    upcast = tiny_architecture("gpt2", text, reorder_and_upcast_attn=True)
    plain, ids = tiny_architecture("gpt2", text), token_ids()
    upcast.set_attn_implementation("eager")
    called: list[int] = []
    for block in stack_of(upcast)[1]:
        attention: Any = block.get_submodule("attn")
        own = attention._upcast_and_reordered_attn
        monkeypatch.setattr(attention, "_upcast_and_reordered_attn", lambda *a, own=own: (called.append(1), own(*a))[1])
    torch.testing.assert_close(logits_of(upcast, ids), logits_of(plain, ids), rtol=1e-5, atol=1e-5)
    assert len(called) == len(stack_of(upcast)[1])


@pytest.fixture
def _fresh_compiler() -> Iterator[None]:
    torch.compiler.reset()
    yield
    torch.compiler.reset()


@pytest.mark.usefixtures("_fresh_compiler")
@pytest.mark.parametrize("name", NAMES)
def test_compiled_is_eager(name: str) -> None:
    check_compiled(name, "mix(alpha=0.5)", "aot_eager")


@pytest.mark.slow
@pytest.mark.usefixtures("_fresh_compiler")
@pytest.mark.parametrize("text", ["pre", "mix(alpha=0.5)"])
@pytest.mark.parametrize("name", NAMES)
def test_compiled_with_inductor_is_eager(name: str, text: str) -> None:
    check_compiled(name, text, "inductor")


def check_compiled(name: str, text: str, backend: str) -> None:
    model, ids = tiny_architecture(name, text, num_hidden_layers=2), inputs_of(name)
    expected, gradients = logits_of(model, ids), gradients_of(model, ids)
    compiled = torch.compile(model, backend=backend)
    output = compiled(**as_given(ids), labels=labels_of(ids))
    torch.testing.assert_close(output.logits.detach(), expected, rtol=1e-4, atol=1e-5 * expected.abs().max().item())
    output.loss.backward()
    found = {name: parameter.grad for name, parameter in model.named_parameters() if parameter.grad is not None}
    assert_close_by_tensor(found, gradients, 1e-4)


@pytest.mark.parametrize("name", NAMES)
def test_the_auto_classes_know_it_once_mixln_is_imported(name: str, tmp_path: Path) -> None:
    if name != NAMES[-1]:
        pytest.skip("one process is enough to show it")
    model = tiny_architecture(name, "mix")
    assert isinstance(model, PlacedPreTrainedModel)
    model.save_pretrained(tmp_path)
    code = (
        f"import sys, mixln; from transformers import {ARCHITECTURES[name].auto_class.__name__} as auto_class; "
        "print(type(auto_class.from_pretrained(sys.argv[1])).__name__)"
    )
    found = subprocess.run([sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == type(model).__name__


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_normed_queries_stay_in_bfloat16(name: str, attention: str, tmp_path: Path) -> None:
    """OLMo's angles are in float32 whatever the model is in, and its own rotation goes back from there."""
    for text in dict.fromkeys([STOCK[name], "post+qk_norm"]):
        tiny_architecture(name, text).save_pretrained(tmp_path / text)
        options = {"dtype": torch.bfloat16, "attn_implementation": attention}
        model = ARCHITECTURES[name].auto_class.from_pretrained(tmp_path / text, **options)
        assert logits_of(model, inputs_of(name)).dtype == torch.bfloat16
