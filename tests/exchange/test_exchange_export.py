"""Exact export to transformers' own classes: what folds gives the same logits, and everything else is refused."""

from __future__ import annotations

import importlib
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from architecture_tools import CAUSAL, NAMES, PLACEMENTS, STOCK, inputs_of, tiny_architecture, tiny_architecture_config
from cover import shared_out
from models_tools import ALL, as_given, generate, logits_of, pixels, tensors_of, token_ids
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
)

from mixln import apply_placement
from mixln.errors import InputError
from mixln.exchange import export
from mixln.exchange.export import compare_logits, save_stock, stock_model
from mixln.exchange.fold import fold
from mixln.models import ARCHITECTURES, PlacedPreTrainedModel
from mixln.placement import BlockPlan, SublayerPlan
from mixln.placement.registry import SCHEMES, register_scheme

pytestmark = pytest.mark.filterwarnings("ignore::mixln.placement.PlacementWarning")

LLAMA_LIKE = {
    "pre": "LlamaForCausalLM",
    "mix(alpha=0)": "LlamaForCausalLM",
    "groupnorm(groups=1)": "LlamaForCausalLM",
    "lns": "LlamaForCausalLM",
    "pre+scaled_embed": "LlamaForCausalLM",
    "lns+scaled_embed": "LlamaForCausalLM",
    "pre+qk_norm": "Qwen3ForCausalLM",
    "lns+qk_norm": "Qwen3ForCausalLM",
    "reordered+qk_norm": "Exaone4ForCausalLM",
    "reordered+qk_norm(per_head=false)": "Olmo2ForCausalLM",
    "sandwich": "Glm4ForCausalLM",
    "sandwich+scaled_embed": "Glm4ForCausalLM",
    "peri": "Glm4ForCausalLM",
    "peri+scaled_embed": "Glm4ForCausalLM",
    "sandwich+qk_norm": "Gemma3ForCausalLM",
    "peri+qk_norm": "Gemma3ForCausalLM",
}
EXPORTED = {
    **{("llama", text): found for text, found in LLAMA_LIKE.items()},
    **{("qwen3", text): found for text, found in LLAMA_LIKE.items()},
    **{("olmo2", text): found for text, found in LLAMA_LIKE.items()},
    **{("mistral", text): found.replace("LlamaFor", "MistralFor") for text, found in LLAMA_LIKE.items()},
    **{
        ("qwen2", text): found.replace("LlamaFor", "Qwen2For")
        for text, found in LLAMA_LIKE.items()
        if "Exaone4" not in found
    },
    **{("olmo", text): "OlmoForCausalLM" for text, found in LLAMA_LIKE.items() if found == "LlamaForCausalLM"},
    **{("gpt2", text): "GPT2LMHeadModel" for text, found in LLAMA_LIKE.items() if found == "LlamaForCausalLM"},
    **{
        (name, text): ARCHITECTURES[name].whole_class.__name__.removeprefix("MixLN")
        for name in NAMES
        for text, found in LLAMA_LIKE.items()
        if name not in CAUSAL and found == "LlamaForCausalLM"
    },
}
"""By architecture and placement, the class that an export gives. Whatever is not here is refused."""

ATTEMPTS = [
    (name, text)
    for name in NAMES
    for text in dict.fromkeys([*(ALL if name == "llama" else PLACEMENTS), *LLAMA_LIKE, STOCK[name]])
]


def expected_class(name: str, text: str) -> str | None:
    # how a model was initialised is no part of its function
    return EXPORTED.get((name, text.replace("+scaled_init", "")))


def relative_difference(one: Any, other: nn.Module) -> float:
    example = next(one.parameters())
    ids = token_ids(length=20) if one.can_generate() else pixels().to(example.dtype)
    expected = logits_of(one, ids).double()
    return ((logits_of(other, ids).double() - expected).abs().max() / expected.abs().max()).item()


@pytest.fixture
def exact_norms(monkeypatch: pytest.MonkeyPatch) -> None:
    """Norms that stay in float64, where transformers' own go through float32 whatever they are given."""

    def rms(self: Any, x: Tensor) -> Tensor:
        eps = self.variance_epsilon if hasattr(self, "variance_epsilon") else self.eps
        weight = self.weight + 1 if type(self).__name__.startswith("Gemma") else self.weight
        return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + eps) * weight

    for family in ("llama", "mistral", "qwen2", "qwen3", "olmo2", "exaone4", "glm4", "gemma2", "gemma3"):
        module = importlib.import_module(f"transformers.models.{family}.modeling_{family}")
        name = next(name for name in dir(module) if name.endswith("RMSNorm"))
        monkeypatch.setattr(getattr(module, name), "forward", rms)
    olmo = importlib.import_module("transformers.models.olmo.modeling_olmo")
    monkeypatch.setattr(olmo.OlmoLayerNorm, "forward", lambda self, x: F.layer_norm(x, self.normalized_shape, eps=1e-5))


def in_dtype(model: PlacedPreTrainedModel, dtype: torch.dtype, folder: Path) -> PlacedPreTrainedModel:
    """The model as it is when it is opened in another dtype, which leaves the rotary frequencies in float32."""
    model.save_pretrained(folder)
    opened: Any = type(model).from_pretrained(folder, dtype=dtype, attn_implementation="sdpa")
    return opened


def with_sdpa(model: PreTrainedModel) -> PreTrainedModel:
    # Gemma 2 has no scaled dot product attention because of its soft caps, which an export does not have
    model.config._attn_implementation = "sdpa"
    return model


@pytest.mark.usefixtures("exact_norms")
@pytest.mark.parametrize(("name", "text"), ATTEMPTS)
def test_every_placement_exports_exactly_or_is_refused(name: str, text: str) -> None:
    model, wanted = tiny_architecture(name, text).double(), expected_class(name, text)
    if wanted is None:
        with pytest.raises(
            InputError, match=r"no class of transformers computes placement .* Weights cannot express how .*: \S+"
        ):
            stock_model(model)
        return
    stock = stock_model(model)
    assert type(stock).__name__ == wanted
    assert type(stock).__module__.startswith("transformers.")
    assert relative_difference(model, with_sdpa(stock)) <= 1e-10
    assert {parameter.dtype for parameter in stock.parameters()} == {torch.float64}


@shared_out(("name", "text"), list(EXPORTED), share=0, of=7)  # exactness is tested of all
def test_in_less_precision_an_export_differs_by_rounding(name: str, text: str, tmp_path: Path) -> None:
    model = tiny_architecture(name, text)
    assert relative_difference(model, stock_model(model)) <= 1e-5
    coarse = in_dtype(model, torch.bfloat16, tmp_path)
    stock = stock_model(coarse)
    assert stock.dtype == torch.bfloat16
    # a bfloat16 has 8 bits: the model itself is this far from its own logits in float32
    assert relative_difference(coarse, stock) <= 0.1


@pytest.mark.parametrize("name", NAMES)
def test_weights_that_are_only_moved_lose_nothing_in_bfloat16(name: str, tmp_path: Path) -> None:
    """Within one step of the largest logit. OLMo 2 rounds in its norms where others do not."""
    for text in ("pre", "pre+qk_norm", "reordered+qk_norm", "sandwich"):
        if (name, text) not in EXPORTED or name == "olmo2":
            continue
        coarse = in_dtype(tiny_architecture(name, text), torch.bfloat16, tmp_path / text)
        assert relative_difference(coarse, stock_model(coarse)) <= 4e-3, text


@pytest.mark.usefixtures("exact_norms")
@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("text", ["lns", "lns+qk_norm"])
def test_pruned_models_keep_the_gains_of_their_original_layers(name: str, text: str, tmp_path: Path) -> None:
    if (name, text) not in EXPORTED:
        pytest.skip("not exported")
    changes = {"num_hidden_layers": 3, "placement_depths": [1, 3, 6], "placement_num_layers": 7}
    model = tiny_architecture(name, text, **changes).double()
    model.config.auto_map = {"AutoConfig": "mixln_code.MixLNConfig"}
    stock = stock_model(model)
    assert relative_difference(model, stock) <= 1e-10
    stock.save_pretrained(tmp_path)
    written = (tmp_path / "config.json").read_text()
    assert "placement" not in written
    assert "mixln" not in written
    assert "embedding_std" not in written


@pytest.mark.parametrize(
    ("text", "stays"),
    [
        *(("lns", True), ("sandwich", True), ("pre+qk_norm", True)),
        *(("lns+scaled_embed", False), ("peri", False), ("sandwich+qk_norm", False)),
    ],
)
def test_a_tied_head_is_untied_where_the_embedding_changes(text: str, stays: bool, tmp_path: Path) -> None:
    model: Any = tiny_architecture("llama", text, tie_word_embeddings=True)
    stock_model(model).save_pretrained(tmp_path)
    stock: Any = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert (stock.get_output_embeddings().weight is stock.get_input_embeddings().weight) is stays
    assert stock.config.tie_word_embeddings is stays
    assert torch.equal(stock.get_output_embeddings().weight, model.get_output_embeddings().weight)
    assert relative_difference(model, stock) <= 1e-5
    assert model.get_output_embeddings().weight is model.get_input_embeddings().weight


@pytest.mark.parametrize("text", ["pre", "lns", "peri", "sandwich+qk_norm"])
def test_the_given_model_stays_as_it_is_and_shares_nothing(text: str) -> None:
    model = tiny_architecture("llama", text).train()
    before = {name: tensor.clone() for name, tensor in tensors_of(model).items()}
    stock = stock_model(model)
    assert stock.training
    assert stock.generation_config is not model.generation_config
    with torch.no_grad():
        for parameter in stock.parameters():
            parameter.zero_()
    assert all(torch.equal(tensor, before[name]) for name, tensor in tensors_of(model).items())


@pytest.mark.parametrize("name", NAMES)
def test_a_stack_without_a_head_exports_too(name: str) -> None:
    whole = tiny_architecture(name, "lns")
    assert isinstance(whole.base_model, PlacedPreTrainedModel)
    stock = stock_model(whole.base_model)
    given = as_given(inputs_of(name))
    assert type(stock).__name__ == {"gpt2": "GPT2Model"}.get(name, type(stock).__name__)
    assert not hasattr(stock, "lm_head")
    expected = whole.base_model(**given).last_hidden_state
    torch.testing.assert_close(stock(**given).last_hidden_state, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.usefixtures("exact_norms")
@pytest.mark.parametrize("name", NAMES)
def test_a_gain_without_a_norm_goes_into_the_projections(name: str) -> None:
    """Fused ones as well: on GPT-2 query, key and value are one matrix, and the biases have no part in it."""

    def scaled(depth: int, num_layers: int) -> BlockPlan:
        """For this test."""
        del num_layers
        return BlockPlan(SublayerPlan(gain=1 / depth), SublayerPlan(gain=2.0 * depth))

    register_scheme("scaled_for_test", final_norm=None, head_bias=True)(scaled)
    try:
        model = tiny_architecture(name, "scaled_for_test").double()
        folded = fold(model)
        assert all(one.gain == 1 for block in folded.plan.blocks for one in (block.attention, block.feed_forward))
        plain = tiny_architecture(name, "none").double()
        assert plain.load_state_dict(folded.weights).missing_keys == []
        assert relative_difference(model, plain) <= 1e-10
        assert relative_difference(tiny_architecture(name, "none").double(), plain) > 1e-3
    finally:
        del SCHEMES["scaled_for_test"]


def test_gates_at_their_start_are_no_obstacle() -> None:
    model = tiny_architecture("llama", "lns+gpas")
    with pytest.raises(
        InputError, match=r"a trained gate on the stream \(S or P\) \(attention and feed-forward, layer"
    ):
        stock_model(model)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "gate.weight" in name and "mlp" not in name:
                parameter.zero_()
    stock = stock_model(model)
    assert type(stock) is LlamaForCausalLM
    assert relative_difference(model, stock) <= 1e-5


REFUSED = {
    "mix(post_layers=2)": ("N_out) (attention and feed-forward, layers 1-2)", "no norm on the sublayer's input"),
    "deepnorm": ("a factor on the stream (rho) (attention and feed-forward, layers 1-4)",),
    "admin": ("a factor on the stream (rho)",),
    "b2t": ("once more (bypass) (feed-forward, layers 1-4)",),
    "hybrid": ("a norm of query, key, value per head (attention, layers 1-4)", "(N_out) (attention, layers 1-4)"),
    "hybrid(first_pre=true)": ("(N_out) (attention, layers 2-4)",),
    "none": ("no norm before the head", "no norm on the sublayer's input (N_in)", "a bias of the head"),
    "groupnorm": ("(N_in) in 8 groups",),
    "pre+dyt": ("of kind dyt", "a norm before the head of kind dyt"),
    "reordered": ("no norm on the sublayer's input", "a norm on the sublayer's output (N_branch)"),
    "pre+qk_norm(per_head=false)": ("a norm of query, key over the full width",),
}


@pytest.mark.parametrize("text", REFUSED)
def test_a_refusal_names_the_part_and_the_ways_that_work(text: str) -> None:
    model = tiny_architecture("llama", text)
    with pytest.raises(InputError) as caught:
        stock_model(model)
    for words in (*REFUSED[text], model.config.placement, "LlamaForCausalLM", "import mixln", "save_self_contained"):
        assert words in str(caught.value)


@pytest.mark.parametrize(
    ("name", "text", "changes", "reason"),
    [
        ("gpt2", "peri", {}, "a norm on the embedding"),
        (
            "gpt2",
            "sandwich",
            {},
            "Glm4ForCausalLM has this placement, but the norms, attention and feed-forward of gpt2",
        ),
        ("olmo", "sandwich", {}, "of olmo are not the ones of Llama"),
        ("mistral", "sandwich", {"sliding_window": 8}, "but the model attends within a sliding window"),
        (
            "qwen2",
            "reordered+qk_norm",
            {},
            "Exaone4ForCausalLM has this placement, but it has no place for biases of the model",
        ),
        ("llama", "sandwich", {"mlp_bias": True}, "but the model's feed-forward has biases"),
        ("llama", "post+qk_norm", {}, "a norm of query, key per head"),
        ("qwen3", "post", {}, "no norm of queries and keys"),
    ],
)
def test_what_else_stands_in_the_way_is_said(name: str, text: str, changes: dict[str, Any], reason: str) -> None:
    with pytest.raises(InputError) as caught:
        stock_model(tiny_architecture(name, text, **changes))
    assert reason in str(caught.value)


@pytest.mark.usefixtures("exact_norms")
@pytest.mark.parametrize(
    ("name", "text", "changes", "wanted"),
    [
        ("llama", "sandwich", {"attention_bias": True}, "Gemma2ForCausalLM"),
        ("llama", "peri+scaled_embed", {"attention_bias": True, "tie_word_embeddings": True}, "Gemma2ForCausalLM"),
        ("llama", "lns", {"attention_bias": True, "mlp_bias": True}, "LlamaForCausalLM"),
        ("llama", "sandwich", {"head_dim": 12}, "Glm4ForCausalLM"),
        ("llama", "reordered+qk_norm", {"head_dim": 12}, "Exaone4ForCausalLM"),
        ("llama", "reordered+qk_norm(per_head=false)", {"head_dim": 12}, "Olmo2ForCausalLM"),
        ("llama", "sandwich+qk_norm", {"head_dim": 12, "hidden_act": "gelu"}, "Gemma3ForCausalLM"),
        ("mistral", "lns", {"sliding_window": 5}, "MistralForCausalLM"),
        ("olmo", "lns", {"clip_qkv": 0.3}, "OlmoForCausalLM"),
        ("qwen2", "pre+qk_norm", {}, "Qwen3ForCausalLM"),
        *(
            ("llama", text, {"rope_parameters": rotary}, wanted)
            for text, wanted in (("lns+qk_norm", "Qwen3"), ("sandwich", "Glm4"), ("sandwich+qk_norm", "Gemma3"))
            for rotary in (
                {"rope_type": "default", "rope_theta": 500.0},
                {"rope_type": "linear", "rope_theta": 700.0, "factor": 4.0},
                {
                    **{"rope_type": "llama3", "rope_theta": 500.0, "factor": 8.0, "low_freq_factor": 1.0},
                    **{"high_freq_factor": 4.0, "original_max_position_embeddings": 16},
                },
            )
        ),
    ],
)
def test_options_of_the_architecture_come_along(
    name: str, text: str, changes: dict[str, Any], wanted: str, tmp_path: Path
) -> None:
    model = tiny_architecture(name, text, **changes).double()
    stock = stock_model(model)
    assert type(stock).__name__.startswith(wanted)
    assert relative_difference(model, with_sdpa(stock)) <= 1e-10
    stock.save_pretrained(tmp_path)
    opened = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float64)
    assert relative_difference(model, with_sdpa(opened)) <= 1e-10
    for field in ("pad_token_id", "bos_token_id"):
        assert getattr(opened.config, field) == getattr(model.config, field)
    ids = token_ids()
    assert torch.equal(generate(opened, ids, max_new_tokens=6), generate(model, ids, max_new_tokens=6))


_OPEN = """
import sys, torch
from transformers import AutoModelForCausalLM
for folder in sys.argv[1:]:
    model = AutoModelForCausalLM.from_pretrained(folder)
    assert type(model).__module__.startswith("transformers."), type(model)
    ids = torch.load(folder + "/ids.pt")
    torch.save((type(model).__name__, model(input_ids=ids).logits.detach()), folder + "/logits.pt")
assert not any(name.split(".")[0] == "mixln" for name in sys.modules)
"""


@pytest.mark.slow
def test_written_folders_open_where_mixln_is_not(tmp_path: Path) -> None:
    ids, expected = token_ids(), {}
    pairs = [
        *(("llama", text) for text in ("lns", "peri", "sandwich+qk_norm", "reordered+qk_norm", "pre+qk_norm")),
        *(("olmo", "lns"), ("olmo2", "reordered+qk_norm(per_head=false)"), ("gpt2", "lns+scaled_embed")),
    ]
    for name, text in pairs:
        source, out = tmp_path / f"{name} {text}", tmp_path / f"{name} {text} exported"
        model = tiny_architecture(name, text)
        model.save_pretrained(source)
        written = save_stock(source, out)
        torch.save(ids, out / "ids.pt")
        expected[out] = (type(written.model).__name__, logits_of(model, ids))
        assert written.difference <= 1e-5 * written.largest_logit
    environment = {"PATH": "", "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-P", "-c", _OPEN, *map(str, expected)]
    subprocess.run(command, check=True, env=environment, cwd=tmp_path, timeout=240)
    for folder, (class_name, logits) in expected.items():
        found_class, found = torch.load(folder / "logits.pt")
        assert (found_class, EXPORTED[tuple(folder.name.split()[:2])]) == (class_name, class_name)
        assert ((found - logits).abs().max() / logits.abs().max()).item() <= 1e-5


def test_saving_brings_tokenizer_and_generation_config_along(tmp_path: Path) -> None:
    model = tiny_architecture("llama", "lns")
    assert model.generation_config is not None
    model.generation_config.max_new_tokens = 7
    model.save_pretrained(tmp_path / "model")
    for name in ("tokenizer.json", "chat_template.jinja"):
        (tmp_path / "model" / name).write_text("{}")
    (tmp_path / "model" / "notes.txt").write_text("not of the model")
    exported = save_stock(tmp_path / "model", tmp_path / "out")
    assert type(exported.model) is LlamaForCausalLM
    assert json.loads((tmp_path / "out" / "generation_config.json").read_text())["max_new_tokens"] == 7
    assert {path.name for path in (tmp_path / "out").iterdir()} == {
        *("config.json", "generation_config.json", "model.safetensors", "tokenizer.json", "chat_template.jinja")
    }


def test_an_export_that_does_not_agree_is_not_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def spoiled(model: PlacedPreTrainedModel, **_: Any) -> PreTrainedModel:
        stock: Any = stock_model(model)
        with torch.no_grad():
            stock.model.norm.weight[0] += 0.01
        return stock

    tiny_architecture("llama", "lns").save_pretrained(tmp_path / "model")
    monkeypatch.setattr(export, "stock_model", spoiled)
    with pytest.raises(InputError, match=r"to LlamaForCausalLM differs by .* so nothing was written"):
        save_stock(tmp_path / "model", tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_bfloat16_is_written_in_bfloat16_whatever_the_difference(tmp_path: Path) -> None:
    model: Any = tiny_architecture("llama", "lns")
    model.to(torch.bfloat16).save_pretrained(tmp_path / "model")
    exported = save_stock(tmp_path / "model", tmp_path / "out")
    assert exported.model.dtype == torch.bfloat16
    assert 0 < exported.difference <= 0.1 * exported.largest_logit


def test_only_a_model_of_this_library_is_exported(tmp_path: Path) -> None:
    config = LlamaConfig(
        vocab_size=97, hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2
    )
    stock = LlamaForCausalLM(config)
    with pytest.raises(InputError, match="LlamaForCausalLM is not a model of this library"):
        stock_model(stock)  # pyright: ignore[reportArgumentType]
    stock.save_pretrained(tmp_path / "stock")
    with pytest.raises(InputError, match="holds a LlamaForCausalLM, which is a class of transformers already"):
        save_stock(tmp_path / "stock", tmp_path / "out")
    with pytest.raises(InputError, match="there is no folder"):
        save_stock(tmp_path / "nowhere", tmp_path / "out")
    with pytest.raises(InputError, match="exists already"):
        save_stock(tmp_path / "stock", tmp_path / "stock")


@pytest.mark.slow
def test_a_real_model_survives_the_round_trip() -> None:
    folder = Path.home() / ".cache" / "mixln-models" / "smollm2"
    if not (folder / "config.json").is_file():
        pytest.skip("SmolLM2 is not on this machine")
    model, _ = apply_placement(LlamaForCausalLM.from_pretrained(folder, dtype=torch.float32), "lns")
    assert isinstance(model, ARCHITECTURES["llama"].whole_class)
    stock = stock_model(model)
    assert type(stock) is LlamaForCausalLM
    difference, largest = compare_logits(model, stock)
    assert difference <= 1e-5 * largest


def test_the_head_of_a_classifier_is_not_exported() -> None:
    model: Any = AutoModelForSequenceClassification.from_config(tiny_architecture_config("llama", "pre"))
    with pytest.raises(InputError, match="the head of a MixLNLlamaForSequenceClassification cannot be exported"):
        stock_model(model)
    stock_model(model.base_model)
