"""Norm-free models in TransformerLens, against the package itself: the same logits, stream and effect of hooks."""

from __future__ import annotations

import importlib.util
import sys
from typing import Any

import pytest
import torch
from architecture_tools import CAUSAL, stack_of, tiny_architecture
from models_tools import VOCABULARY, logits_of, tensors_of, tiny_model, token_ids
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, LlamaConfig, PreTrainedTokenizerFast

from mixln.errors import InputError
from mixln.exchange.transformer_lens import to_transformer_lens
from mixln.models import PlacedPreTrainedModel
from mixln.placement import PlacedBlock

# not `importorskip`, whose import would be part of every collection
needs_package = pytest.mark.skipif(
    importlib.util.find_spec("transformer_lens") is None, reason="needs mixln[transformer-lens]"
)

TOLERANCE = 1e-4
"""Of logits of order 10, in float32."""

VARIANTS: dict[str, tuple[str, dict[str, Any]]] = {
    **{name: (name, {}) for name in CAUSAL},
    "gpt2, tied": ("gpt2", {"tie_word_embeddings": True}),
    "gpt2, scores by layer": ("gpt2", {"scale_attn_by_inverse_layer_idx": True}),
    "gpt2, scores as they are": ("gpt2", {"scale_attn_weights": False}),
    "llama, tied": ("llama", {"tie_word_embeddings": True}),
    "llama, one head each": ("llama", {"num_key_value_heads": 4}),
    "llama, biases and wide heads": ("llama", {"attention_bias": True, "head_dim": 12}),
    "llama, another angle": ("llama", {"rope_parameters": {"rope_type": "default", "rope_theta": 500.0}}),
    "llama, gelu": ("llama", {"hidden_act": "gelu_pytorch_tanh"}),
}


def norm_free(name: str, placement: str = "none", *, head_bias: bool = True, **changes: Any) -> PlacedPreTrainedModel:
    """A model with random biases, whose logits are of order 10."""
    model = tiny_architecture(name, placement, **({"initializer_range": 0.1} | changes))
    head: Any = model.get_output_embeddings()
    if head_bias and head.bias is None:
        head.bias = nn.Parameter(torch.zeros(VOCABULARY))
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter_name, parameter in model.named_parameters():
            if parameter_name.endswith("bias"):
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.3)
            if parameter_name.endswith("activation_gate.weight"):
                parameter.zero_()
        if not model.config.tie_word_embeddings:
            head.weight.normal_(generator=generator)
            head.weight *= 10 / logits_of(model, token_ids(length=40)).abs().max()
    return model


def difference(model: nn.Module, hooked: Any, ids: Tensor) -> float:
    with torch.no_grad():
        return (logits_of(model, ids) - hooked(ids)).abs().max().item()


@needs_package
@pytest.mark.parametrize("placement", ["none", "none+scaled_embed", "none+gpas"])
@pytest.mark.parametrize("variant", VARIANTS)
def test_logits_are_the_same(variant: str, placement: str) -> None:
    name, changes = VARIANTS[variant]
    model, ids = norm_free(name, placement, **changes), token_ids(length=40)
    before = {key: tensor.clone() for key, tensor in tensors_of(model).items()}
    hooked = to_transformer_lens(model)
    assert 1 < logits_of(model, ids).abs().max() < 30
    assert difference(model, hooked, ids) <= TOLERANCE
    assert hooked.cfg.normalization_type is None
    # neither has become a part of the other
    with torch.no_grad():
        for parameter in hooked.parameters():
            parameter.zero_()
    assert all(torch.equal(tensor, before[key]) for key, tensor in tensors_of(model).items())


@needs_package
@pytest.mark.parametrize("name", ["gpt2", "llama", "qwen2"])
def test_float64_is_kept(name: str) -> None:
    model, ids = norm_free(name).double(), token_ids(length=40)
    hooked = to_transformer_lens(model)
    assert hooked(ids).dtype == torch.float64
    # in 3.x the angles are of this precision too, and in transformers of float32's
    assert difference(model, hooked, ids) <= 1e-6


@needs_package
def test_a_head_without_bias_has_zeros() -> None:
    model = norm_free("llama", head_bias=False)
    head: Any = model.get_output_embeddings()
    head.bias = None
    hooked = to_transformer_lens(model)
    assert not hooked.b_U.any()
    assert difference(model, hooked, token_ids()) <= TOLERANCE


@needs_package
def test_weights_have_their_names_and_the_embeddings_factor_stays_off_the_positions() -> None:
    model = norm_free("gpt2", "none+scaled_embed")
    hooked, state = to_transformer_lens(model), tensors_of(model)
    width = model.config.hidden_size
    torch.testing.assert_close(hooked.W_E, state["transformer.wte.weight"] * width**0.5)
    assert torch.equal(hooked.W_pos, state["transformer.wpe.weight"])
    assert torch.equal(hooked.W_U, state["lm_head.weight"].T)
    assert torch.equal(hooked.b_U, state["lm_head.bias"])
    assert torch.equal(hooked.W_in[2], state["transformer.h.2.mlp.c_fc.weight"])
    fused = state["transformer.h.2.attn.c_attn.weight"]
    assert torch.equal(hooked.W_V[2, 1], fused[:, 2 * width :].unflatten(1, (4, -1))[:, 1])


@needs_package
@pytest.mark.parametrize("name", ["gpt2", "llama", "qwen2"])
@pytest.mark.parametrize("placement", ["none", "none+scaled_embed"])
def test_the_cached_stream_is_the_hidden_states(name: str, placement: str) -> None:
    model, ids = norm_free(name, placement), token_ids(length=20)
    with torch.no_grad():
        states = model(input_ids=ids, output_hidden_states=True).hidden_states
        _, cache = to_transformer_lens(model).run_with_cache(ids)
    factor = model.config.hidden_size**0.5 if "scaled" in placement else 1
    # the first is recorded before the placement's factor, or before the positions, according to the architecture
    for layer in range(1, 5):
        torch.testing.assert_close(cache[f"blocks.{layer - 1}.hook_resid_post"], states[layer], atol=1e-5, rtol=1e-5)
    embedded = model.get_input_embeddings()(ids) * factor
    torch.testing.assert_close(cache["hook_embed"], embedded)
    if name != "gpt2":
        torch.testing.assert_close(cache["blocks.0.hook_resid_pre"], embedded)


@needs_package
@pytest.mark.parametrize("name", ["gpt2", "llama"])
def test_a_hook_does_what_it_does_in_the_model(name: str) -> None:
    model, ids = norm_free(name), token_ids(length=20)
    hooked = to_transformer_lens(model)
    whole = logits_of(model, ids)
    _, blocks = stack_of(model)
    handle = blocks[1].get_submodule("mlp").register_forward_hook(lambda *found: found[2] * 0)
    expected = logits_of(model, ids)
    handle.remove()
    with torch.no_grad():
        ablated = hooked.run_with_hooks(ids, fwd_hooks=[("blocks.1.hook_mlp_out", lambda value, hook: value * 0)])  # noqa: ARG005
    assert (ablated - expected).abs().max() <= TOLERANCE
    assert (ablated - whole).abs().max() > 0.1
    assert difference(model, hooked, ids) <= TOLERANCE


@needs_package
@pytest.mark.parametrize("name", ["gpt2", "llama"])
def test_a_shorter_context(name: str) -> None:
    model, ids = norm_free(name), token_ids(length=16)
    hooked = to_transformer_lens(model, context_length=16)
    assert hooked.cfg.n_ctx == 16
    assert difference(model, hooked, ids) <= TOLERANCE


def tiny_tokenizer(*, prepends: bool) -> PreTrainedTokenizerFast:
    vocabulary = {"<s>": 0, **{f"w{number}": number for number in range(1, VOCABULARY)}}
    found = Tokenizer(models.WordLevel(vocabulary, unk_token="<s>"))
    found.pre_tokenizer = pre_tokenizers.Whitespace()  # pyright: ignore[reportAttributeAccessIssue]
    if prepends:
        found.post_processor = processors.TemplateProcessing(  # pyright: ignore[reportAttributeAccessIssue]
            single="<s> $A", special_tokens=[("<s>", 0)]
        )
    return PreTrainedTokenizerFast(tokenizer_object=found, bos_token="<s>", eos_token="<s>")


@needs_package
@pytest.mark.parametrize("prepends", [False, True])
def test_strings_are_tokenised_as_the_tokenizer_does_it(prepends: bool) -> None:
    model, tokenizer = norm_free("llama"), tiny_tokenizer(prepends=prepends)
    hooked = to_transformer_lens(model, tokenizer=tokenizer)
    ids = tokenizer("w5 w9 w3", return_tensors="pt")["input_ids"]
    assert isinstance(ids, Tensor)
    assert ids.shape[1] == 3 + prepends
    assert torch.equal(hooked.to_tokens("w5 w9 w3"), ids)
    with torch.no_grad():
        assert (hooked("w5 w9 w3") - logits_of(model, ids)).abs().max() <= TOLERANCE
    assert tokenizer.pad_token is None


@pytest.mark.parametrize(
    ("name", "placement", "changes", "message"),
    [
        ("llama", "pre", {}, "remove them first .mixln remove-norm."),
        ("gpt2", "lns", {}, "remove them first .mixln remove-norm."),
        ("qwen3", "none+qk_norm", {}, "a norm of query, key per head"),
        ("mistral", "none", {"sliding_window": 8}, "sliding window"),
        (
            "qwen2",
            "none",
            {"use_sliding_window": True, "sliding_window": 8, "max_window_layers": 2},
            "sliding window",
        ),
        ("olmo", "none", {"clip_qkv": 3.0}, "clip_qkv=3.0"),
        ("llama", "none", {"mlp_bias": True}, "mlp_bias"),
        ("llama", "none", {"hidden_act": "tanh"}, "activation function tanh"),
        (
            "llama",
            "none",
            {"rope_parameters": {"rope_type": "linear", "rope_theta": 10000.0, "factor": 2.0}},
            "of another type .*linear",
        ),
        ("llama", "none", {"rope_parameters": {"rope_type": "default", "rope_theta": 10000.5}}, "a whole number"),
    ],
)
def test_what_cannot_be_exported_is_refused(name: str, placement: str, changes: dict[str, Any], message: str) -> None:
    model = tiny_architecture(name, placement, **changes)
    with pytest.raises(InputError, match=message):
        to_transformer_lens(model)


def test_trained_gates_are_refused() -> None:
    model = norm_free("llama", "none+gpas")
    block = next(module for module in model.modules() if isinstance(module, PlacedBlock))
    nn.init.constant_(block.activation_gate.weight, 0.1)
    with pytest.raises(InputError, match=r"a trained gate on the stream .*layer 1"):
        to_transformer_lens(model)


@pytest.mark.parametrize("length", [0, 65])
def test_a_context_that_the_model_does_not_have_is_refused(length: int) -> None:
    with pytest.raises(InputError, match="from 1 to 64"):
        to_transformer_lens(norm_free("gpt2"), context_length=length)


def test_other_models_and_headless_ones_are_refused() -> None:
    stock: Any = AutoModelForCausalLM.from_config(
        LlamaConfig(hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2, vocab_size=9)
    )
    headless: Any = tiny_model("none").model
    with pytest.raises(InputError, match="LlamaForCausalLM is not a model of this library"):
        to_transformer_lens(stock)
    with pytest.raises(InputError, match="has no head"):
        to_transformer_lens(headless)


@needs_package
def test_what_no_field_of_the_config_tells_is_refused_by_the_logits() -> None:
    """Layers without rotary positions, which other architectures choose by fields of their own."""
    model = norm_free("llama")
    _, blocks = stack_of(model)

    def without_rotation(_: nn.Module, arguments: tuple[Any, ...], named: dict[str, Any]) -> Any:
        cosine, sine = named["position_embeddings"]
        return arguments, named | {"position_embeddings": (torch.ones_like(cosine), torch.zeros_like(sine))}

    blocks[2].get_submodule("self_attn").register_forward_pre_hook(without_rotation, with_kwargs=True)
    model.train()
    with pytest.raises(
        InputError, match=r"logits that are not those of the MixLNLlamaForCausalLM: they differ by [\d.]+"
    ):
        to_transformer_lens(model)
    assert all(module.training for module in model.modules())


@needs_package
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_less_precise_weights_are_no_difference(dtype: torch.dtype) -> None:
    model: Any = norm_free("llama")
    assert to_transformer_lens(model.to(dtype)).cfg.dtype == dtype


def test_without_the_package_the_error_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "transformer_lens", None)
    with pytest.raises(InputError, match=r"pip install 'mixln\[transformer-lens\]'"):
        to_transformer_lens(norm_free("llama"))
