"""What holds for Llama under every registered placement."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from cover import scheme_and_rest, shared_out
from models_tools import (
    ALL,
    PLACEMENTS,
    SCHEMES,
    VOCABULARY,
    assert_close_by_tensor,
    assert_same_tensors,
    generate,
    gradients_of,
    logits_of,
    randomise_gains,
    tiny_config,
    tiny_model,
    token_ids,
)
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM
from transformers.models.llama.modeling_llama import LlamaMLP

from mixln import MixLNLlamaConfig, MixLNLlamaForCausalLM, MixLNLlamaModel

pytestmark = pytest.mark.filterwarnings("ignore::mixln.placement.PlacementWarning")


@pytest.fixture
def _fresh_compiler() -> Iterator[None]:
    torch.compiler.reset()
    yield
    torch.compiler.reset()


def of_all(share: int) -> pytest.MarkDecorator:
    """Of five tests over all placements (one is in test_models_initialize.py), the fast suite runs each with a part."""
    return shared_out("text", ALL, share=share, of=5, factors=scheme_and_rest)


def load(folder: Path, **kwargs: Any) -> MixLNLlamaForCausalLM:
    model = AutoModelForCausalLM.from_pretrained(folder, **kwargs)
    assert isinstance(model, MixLNLlamaForCausalLM)
    return model


@of_all(0)
def test_meta_init_is_normal_init(text: str) -> None:
    with torch.device("meta"):
        model = MixLNLlamaForCausalLM(tiny_config(text))
    assert all(parameter.is_meta for parameter in model.parameters())
    model.to_empty(device="cpu")
    with torch.no_grad():
        for tensor in (*model.parameters(), *model.buffers()):
            tensor.fill_(torch.nan)
    model.initialize(3)
    normal = MixLNLlamaForCausalLM(tiny_config(text)).initialize(3)
    assert_same_tensors(model, normal)
    ids = token_ids()
    assert torch.equal(logits_of(model.eval(), ids), logits_of(normal.eval(), ids))


@of_all(1)
def test_initialise_draws_anew_whatever_was_there(text: str) -> None:
    model = MixLNLlamaForCausalLM(tiny_config(text)).initialize(3)
    other = MixLNLlamaForCausalLM(tiny_config(text)).initialize(4)
    randomise_gains(other)
    assert_same_tensors(model, other.initialize(3))


@of_all(2)
def test_saving_and_loading_is_bitwise(text: str, tmp_path: Path) -> None:
    model, ids = tiny_model(text), token_ids()
    model.save_pretrained(tmp_path)
    assert not list(tmp_path.glob("*.bin"))
    assert json.loads((tmp_path / "config.json").read_text())["placement"] == str(model.config.placement)
    loaded = load(tmp_path)
    assert_same_tensors(model, loaded)
    assert torch.equal(logits_of(loaded, ids), logits_of(model, ids))
    config = AutoConfig.from_pretrained(tmp_path)
    assert isinstance(config, MixLNLlamaConfig)
    assert config.stack_plan == model.config.stack_plan
    assert getattr(config, "layer_types", None) is None


@pytest.mark.parametrize("text", SCHEMES)
def test_a_loaded_model_saves_the_same_folder_again(text: str, tmp_path: Path) -> None:
    tiny_model(text).save_pretrained(tmp_path / "one")
    load(tmp_path / "one").save_pretrained(tmp_path / "two")
    for name in ("config.json", "model.safetensors"):
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()


@pytest.mark.slow
@pytest.mark.usefixtures("_fresh_compiler")
@pytest.mark.parametrize("text", [text for text in [*SCHEMES, "mix(alpha=0.5)"] if text != "mix"])
def test_compiled_is_eager(text: str) -> None:
    check_compiled(text, "aot_eager")


@pytest.mark.slow
@pytest.mark.usefixtures("_fresh_compiler")
@pytest.mark.parametrize("text", ["mix(alpha=0.5)", "lns", "deepnorm"])
def test_compiled_with_inductor_is_eager(text: str) -> None:
    check_compiled(text, "inductor")


def check_compiled(text: str, backend: str) -> None:
    # two layers: a block of each kind of `mix`, and a scalar other than 1 in `lns`
    model, ids = tiny_model(text, num_hidden_layers=2), token_ids()
    expected, gradients = logits_of(model, ids), gradients_of(model, ids)
    compiled = torch.compile(model, backend=backend)
    output = compiled(input_ids=ids, labels=ids, use_cache=False)
    torch.testing.assert_close(output.logits.detach(), expected, rtol=1e-4, atol=1e-5)
    output.loss.backward()
    found = {name: parameter.grad for name, parameter in model.named_parameters() if parameter.grad is not None}
    assert_close_by_tensor(found, gradients, 1e-4)


@of_all(3)
def test_every_parameter_gets_a_finite_gradient(text: str) -> None:
    model = tiny_model(text)
    gradients = gradients_of(model, token_ids())
    assert gradients.keys() == dict(model.named_parameters()).keys()
    for name, gradient in gradients.items():
        assert gradient.isfinite().all(), name
        assert gradient.any(), name


@pytest.mark.parametrize("text", PLACEMENTS)
def test_generation_with_the_cache_is_generation_without(text: str) -> None:
    model, ids = tiny_model(text), token_ids(2, 5)
    generated = [generate(model, ids, max_new_tokens=12, use_cache=use_cache) for use_cache in (True, False)]
    assert generated[0].shape == (2, 17)
    assert torch.equal(generated[0], generated[1])
    assert torch.equal(generated[0][:, :5], ids)


@pytest.mark.parametrize("text", PLACEMENTS)
def test_cached_steps_give_the_uncached_logits(text: str) -> None:
    model, ids = tiny_model(text), token_ids(2, 9)
    expected = logits_of(model, ids)
    cache: Any = None
    with torch.no_grad():
        for start, stop in ((0, 4), (4, 5), (5, 6), (6, 9)):
            output = model(input_ids=ids[:, start:stop], past_key_values=cache, use_cache=True)
            cache = output.past_key_values
            torch.testing.assert_close(output.logits, expected[:, start:stop], rtol=0, atol=1e-5)
    assert cache.get_seq_length() == 9


@pytest.mark.parametrize("text", PLACEMENTS)
def test_sdpa_is_eager_attention(text: str) -> None:
    model, ids = tiny_model(text), token_ids()
    assert model.config._attn_implementation == "sdpa"
    expected = logits_of(model, ids)
    model.set_attn_implementation("eager")
    torch.testing.assert_close(logits_of(model, ids), expected, rtol=0, atol=1e-5)
    output = model(input_ids=ids, output_attentions=True)
    assert len(output.attentions) == 4
    torch.testing.assert_close(output.attentions[2].sum(-1), torch.ones(2, 4, 12))


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("text", PLACEMENTS)
def test_padding_on_either_side_changes_nothing(text: str, attention: str) -> None:
    model = tiny_model(text, attn_implementation=attention)
    rows = [token_ids(1, length, seed=length)[0] for length in (4, 7, 9)]
    for left in (True, False):
        ids, mask = torch.zeros(3, 9, dtype=torch.long), torch.zeros(3, 9, dtype=torch.long)
        places = [slice(9 - len(row), 9) if left else slice(0, len(row)) for row in rows]
        for i, (row, place) in enumerate(zip(rows, places, strict=True)):
            ids[i, place], mask[i, place] = row, 1
        positions = (mask.cumsum(-1) - 1).clamp(min=0)
        logits = logits_of(model, ids, attention_mask=mask, position_ids=positions)
        for i, (row, place) in enumerate(zip(rows, places, strict=True)):
            torch.testing.assert_close(logits[i, place], logits_of(model, row[None])[0], rtol=0, atol=1e-5)


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("text", PLACEMENTS)
def test_attention_stays_inside_documents_where_positions_restart(text: str, attention: str) -> None:
    model = tiny_model(text, attn_implementation=attention)
    ids, border = token_ids(2, 11), 4
    positions = torch.cat((torch.arange(border), torch.arange(11 - border)))[None].expand(2, -1)
    logits = logits_of(model, ids, position_ids=positions)
    changed = ids.clone()
    changed[:, 1] = (changed[:, 1] + 1) % VOCABULARY
    after = logits_of(model, changed, position_ids=positions)
    torch.testing.assert_close(after[:, border:], logits[:, border:], rtol=0, atol=1e-6)
    assert not torch.allclose(after[:, 1:border], logits[:, 1:border], atol=1e-2)
    # and each document is what it is alone
    torch.testing.assert_close(logits[:, border:], logits_of(model, ids[:, border:]), rtol=0, atol=1e-5)
    # without positions that restart, the documents do see each other
    assert not torch.allclose(logits_of(model, changed)[:, border:], logits_of(model, ids)[:, border:], atol=1e-2)


@pytest.mark.parametrize("text", PLACEMENTS)
def test_gradient_checkpointing_changes_no_gradient(text: str) -> None:
    model, ids = tiny_model(text).train(), token_ids()
    expected = gradients_of(model, ids)
    calls: list[int] = []
    for module in model.modules():
        if isinstance(module, LlamaMLP):
            module.register_forward_pre_hook(lambda *_: calls.append(1))
    model.gradient_checkpointing_enable()
    found = gradients_of(model, ids)
    assert len(calls) == 2 * 4, "the layers were not computed a second time: nothing was checkpointed"
    assert_close_by_tensor(found, expected, 1e-6)


@pytest.mark.parametrize("text", [*PLACEMENTS, *(f"{scheme}+scaled_embed" for scheme in SCHEMES)])
def test_hidden_states_are_the_inputs_of_the_blocks_and_the_output(text: str) -> None:
    model, ids = tiny_model(text), token_ids()
    inputs: list[torch.Tensor] = []
    hooks = [layer.register_forward_pre_hook(lambda _m, args: inputs.append(args[0])) for layer in model.model.layers]
    with torch.no_grad():
        output = model(input_ids=ids, output_hidden_states=True)
    for hook in hooks:
        hook.remove()
    states = output.hidden_states
    assert len(states) == 5
    factor = 32**0.5 if "scaled_embed" in text else 1
    embedded = model.model.embed_tokens(ids) * factor
    has_norm = model.config.stack_plan.embedding_norm is not None
    assert torch.equal(states[0], model.get_submodule("model.embedding_norm")(embedded) if has_norm else embedded)
    for state, seen in zip(states[:-1], inputs, strict=True):
        assert torch.equal(state, seen)
    torch.testing.assert_close(model.lm_head(states[-1]), output.logits)


@pytest.mark.parametrize("text", PLACEMENTS)
def test_embeddings_can_be_given_in_place_of_ids(text: str) -> None:
    for placement in (text, f"{text}+scaled_embed"):
        model, ids = tiny_model(placement), token_ids()
        with torch.no_grad():
            output = model(inputs_embeds=model.model.embed_tokens(ids))
        assert torch.equal(output.logits, logits_of(model, ids))
    with pytest.raises(ValueError, match="exactly one of input_ids and inputs_embeds"):
        tiny_model(text)()


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("text", PLACEMENTS)
def test_heads_are_tied_or_not_and_stay_so(text: str, tied: bool, tmp_path: Path) -> None:
    model, ids = tiny_model(text, tie_word_embeddings=tied), token_ids()
    assert (model.lm_head.weight is model.model.embed_tokens.weight) == tied
    model.save_pretrained(tmp_path)
    loaded = load(tmp_path)
    assert (loaded.lm_head.weight is loaded.model.embed_tokens.weight) == tied
    assert torch.equal(logits_of(loaded, ids), logits_of(model, ids))
    with torch.device("meta"):
        empty = MixLNLlamaForCausalLM(tiny_config(text, tie_word_embeddings=tied))
    empty.to_empty(device="cpu")
    empty.tie_weights()
    empty.initialize(0)
    assert (empty.lm_head.weight is empty.model.embed_tokens.weight) == tied
    assert_same_tensors(empty, MixLNLlamaForCausalLM(tiny_config(text, tie_word_embeddings=tied)).initialize(0))


@pytest.mark.parametrize("key_value_heads", [1, 2, 4])
@pytest.mark.parametrize("text", PLACEMENTS)
def test_grouped_queries_are_repeated_keys_and_values(text: str, key_value_heads: int) -> None:
    grouped = tiny_model(text, num_key_value_heads=key_value_heads)
    full = tiny_model(text, num_key_value_heads=4)
    weights = grouped.state_dict()
    for name, tensor in weights.items():
        if name.endswith(("k_proj.weight", "v_proj.weight")):
            heads = tensor.view(key_value_heads, 8, 32).repeat_interleave(4 // key_value_heads, dim=0)
            weights[name] = heads.reshape(32, 32)
    full.load_state_dict(weights)
    ids = token_ids()
    torch.testing.assert_close(logits_of(full, ids), logits_of(grouped, ids), rtol=0, atol=1e-5)


@pytest.mark.parametrize("text", PLACEMENTS)
def test_bfloat16_stays_bfloat16_and_close(text: str, tmp_path: Path) -> None:
    model, ids = tiny_model(text), token_ids()
    expected = logits_of(model, ids)
    model.save_pretrained(tmp_path)
    half = load(tmp_path, dtype=torch.bfloat16)
    assert {parameter.dtype for parameter in half.parameters()} == {torch.bfloat16}
    dtypes: list[torch.dtype] = []
    for layer in half.model.layers:
        layer.register_forward_hook(lambda _m, _i, output: dtypes.append(output.dtype))
    logits = logits_of(half, ids)
    assert logits.dtype == torch.bfloat16
    assert set(dtypes) == {torch.bfloat16}
    assert (logits.float() - expected).norm() < 0.05 * expected.norm()
    gradients = gradients_of(half, ids)
    assert all(gradient.isfinite().all() for gradient in gradients.values())


@pytest.mark.parametrize("text", SCHEMES)
def test_the_auto_classes_build_a_model_from_its_config(text: str) -> None:
    config = tiny_config(text)
    assert isinstance(AutoModelForCausalLM.from_config(config), MixLNLlamaForCausalLM)
    base = AutoModel.from_config(config)
    assert isinstance(base, MixLNLlamaModel)
    with torch.no_grad():
        assert base(input_ids=token_ids()).last_hidden_state.shape == (2, 12, 32)


def test_no_stock_layer_is_built_to_be_thrown_away(monkeypatch: pytest.MonkeyPatch) -> None:
    from transformers.models.llama import modeling_llama

    def refuse(*_args: object, **_kwargs: object) -> None:
        raise AssertionError("a stock decoder layer was built")

    monkeypatch.setattr(modeling_llama.LlamaDecoderLayer, "__init__", refuse)
    assert len(tiny_model("post").model.layers) == 4


def test_a_whole_optimiser_step_moves_every_parameter() -> None:
    model = tiny_model("mix(alpha=0.5)").train()
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    model(input_ids=token_ids(), labels=token_ids()).loss.backward()
    optimizer.step()
    for name, parameter in model.named_parameters():
        assert not torch.equal(parameter, before[name]), name
