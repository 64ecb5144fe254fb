"""Folding frozen norms away: the same function without norms, exactly, and what is refused."""

from __future__ import annotations

import copy
import json
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from architecture_tools import tiny_architecture
from measure_surgery import remove_blocks
from models_tools import generate, logits_of, tensors_of, token_ids
from norm_removal_tools import END_OF_TEXT, freeze_all, frozen_model, measure_fold, trained, with_norms
from self_contained import open_without_mixln, write_case
from torch import nn
from torch.nn import functional as F
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast

import mixln
from mixln.data import PreparedData
from mixln.errors import InputError
from mixln.models.anatomy import find_block_stack
from mixln.models.decoder import PlacedForCausalLM
from mixln.placement import PlacedBlock, PlacementError
from mixln.studies.diagnosis_config import DiagnosisConfig
from mixln.tasks.norm_removal import fold_norms, fold_norms_in_place, install_frozen_norms
from mixln.tasks.objective import document_mask

pytestmark = pytest.mark.filterwarnings("ignore::mixln.placement.PlacementWarning")

BIASES = {"attention_bias": True, "mlp_bias": True}
PRUNED = {"num_hidden_layers": 3, "placement_depths": [1, 3, 6], "placement_num_layers": 7}
CASES: list[tuple[str, str, dict[str, Any]]] = [
    ("gpt2", "pre", {}),
    ("gpt2", "lns", {"tie_word_embeddings": True}),
    ("gpt2", "lns+scaled_embed+gpas", {}),
    ("gpt2", "lns", PRUNED),
    ("llama", "pre", {}),
    ("llama", "pre", BIASES),
    ("llama", "lns", {**BIASES, "tie_word_embeddings": True}),
    ("llama", "lns+scaled_embed+gpas", PRUNED),
    ("llama", "pre+scaled_init", {"head_dim": 12}),
    ("olmo", "pre", {}),
    ("olmo", "lns", {"clip_qkv": 0.5}),
    ("qwen2", "pre", {}),
    ("qwen2", "lns", {"tie_word_embeddings": True}),
    ("mistral", "pre", {"sliding_window": 5}),
    ("qwen3", "pre", {}),
    ("olmo2", "lns", {}),
]
TOLERANCE = {torch.float64: 1e-10, torch.float32: 1e-5, torch.bfloat16: 0.1}
"""Of the largest logit. A bfloat16 has 8 bits: the frozen model itself is this far from its own logits in float32."""


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize(("name", "text", "changes"), CASES)
def test_without_norms_the_function_is_the_same(
    name: str, text: str, changes: dict[str, Any], dtype: torch.dtype
) -> None:
    model, norms = frozen_model(name, text, dtype, **changes)
    folded = fold_norms(model, norms)
    report = measure_fold(model, folded)
    assert report.difference <= TOLERANCE[dtype] * report.largest_logit
    assert 0.1 < report.largest_logit < 100
    assert type(folded) is type(model)
    assert folded.config.placement == "+".join(["none", *text.split("+")[1:]])
    assert folded.config.placement_depths == changes.get("placement_depths")
    assert not any("orm" in type(module).__name__ for module in folded.modules())
    assert not folded.config.tie_word_embeddings
    assert {parameter.dtype for parameter in folded.parameters()} == {dtype}
    bias = folded.get_parameter("lm_head.bias")
    assert bool(bias.any()) == (name == "gpt2")


def test_the_matrices_are_those_of_the_formula() -> None:
    """GPT-2's query, key and value are one matrix, of which the first two parts have another scale than the third."""
    model, norms = frozen_model("gpt2", "lns", torch.float64)
    w = {name: tensor.detach().clone() for name, tensor in model.named_parameters()}
    folded = dict(fold_norms(model, norms).named_parameters())
    center = torch.eye(32, dtype=torch.float64) - torch.full((32, 32), 1 / 32, dtype=torch.float64)
    one, gain = "transformer.h.2", 3**-0.5

    def sigma(path: Any, layer: int | None) -> torch.Tensor:
        norm = norms.norms[path, layer]
        return norm.sigma[norm.paths.index(path), 0].double()

    # in GPT-2 a matrix is stored as (in, out)
    gamma, beta = w[f"{one}.ln_1.weight"], w[f"{one}.ln_1.bias"]
    by_part = torch.cat([sigma("query_key", 2).expand(64), sigma("value", 2).expand(32)])
    matrix = w[f"{one}.attn.c_attn.weight"]
    expected = {
        f"{one}.attn.c_attn.weight": gain * gamma[:, None] * matrix / by_part,
        f"{one}.attn.c_attn.bias": w[f"{one}.attn.c_attn.bias"] + gain * beta @ matrix,
        f"{one}.attn.c_proj.weight": w[f"{one}.attn.c_proj.weight"] @ center,
        f"{one}.attn.c_proj.bias": center @ w[f"{one}.attn.c_proj.bias"],
        f"{one}.mlp.c_fc.weight": gain
        * w[f"{one}.ln_2.weight"][:, None]
        * w[f"{one}.mlp.c_fc.weight"]
        / sigma("feed_forward", 2),
        f"{one}.mlp.c_proj.bias": center @ w[f"{one}.mlp.c_proj.bias"],
        "transformer.wte.weight": w["transformer.wte.weight"] @ center,
        "transformer.wpe.weight": w["transformer.wpe.weight"] @ center,
        "lm_head.weight": w["lm_head.weight"] * w["transformer.ln_f.weight"] / sigma("final", None),
        "lm_head.bias": w["lm_head.weight"] @ w["transformer.ln_f.bias"],
    }
    for name, tensor in expected.items():
        torch.testing.assert_close(folded[name], tensor, rtol=1e-12, atol=1e-12, msg=name)


def test_rms_norms_leave_the_writers_as_they_are() -> None:
    model, norms = frozen_model("llama", "pre")
    folded = dict(fold_norms(model, norms).named_parameters())
    for name, parameter in model.named_parameters():
        if name.split(".")[-2] in ("embed_tokens", "o_proj", "down_proj"):
            assert torch.equal(folded[name], parameter), name


@pytest.mark.parametrize("name", ["gpt2", "llama"])
def test_the_given_model_stays_as_it_is_and_shares_nothing(name: str) -> None:
    model, norms = frozen_model(name, "lns", tie_word_embeddings=True)
    before = {key: tensor.clone() for key, tensor in tensors_of(model).items()}
    ids = token_ids()
    logits = logits_of(model, ids)
    folded = fold_norms(model.train(), norms)
    assert folded.training
    with torch.no_grad():
        for parameter in folded.parameters():
            parameter.zero_()
    assert all(torch.equal(tensor, before[key]) for key, tensor in tensors_of(model).items())
    assert torch.equal(logits_of(model.eval(), ids), logits)
    assert model.config.tie_word_embeddings


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("name", ["gpt2", "llama"])
def test_in_place_it_is_a_model_with_the_same_matrices(name: str, tied: bool) -> None:
    model, norms = frozen_model(name, "lns+gpas", tie_word_embeddings=tied)
    expected = fold_norms(model, norms)
    matrices = {key: value for key, value in model.named_parameters() if value.ndim == 2}
    tokens = token_ids(seed=9)
    folded, report = fold_norms_in_place(model, norms, tokens)
    assert 0 < report.difference <= 1e-5 * report.largest_logit
    assert torch.equal(logits_of(folded, tokens), logits_of(expected, tokens))
    own = dict(folded.named_parameters())
    assert own.keys() == dict(expected.named_parameters()).keys()
    assert all(own[key] is value for key, value in matrices.items())
    assert report.largest_logit == pytest.approx(logits_of(folded, tokens).abs().max().item(), rel=1e-5)
    with pytest.raises(InputError, match="the norms are not those of the model"):
        fold_norms_in_place(folded, norms, tokens)


@pytest.mark.parametrize("name", ["gpt2", "llama"])
def test_documents_packed_into_a_row_give_the_same(name: str) -> None:
    model, norms = frozen_model(name, "pre")
    folded = fold_norms(model, norms)
    ids, positions = token_ids(length=15), torch.cat([torch.arange(7), torch.arange(8)])[None].expand(2, -1)
    mask: Any = document_mask(positions, "sdpa", torch.float32)
    expected, found = (logits_of(one, ids, position_ids=positions, attention_mask=mask) for one in (model, folded))
    assert (found - expected).abs().max() <= 1e-5 * expected.abs().max()
    # and without a class of its own for the end of text
    alone = logits_of(folded, ids[:, 7:])
    assert (found[:, 7:] - alone).abs().max() <= 1e-5 * alone.abs().max()


def test_what_is_not_frozen_or_not_merged_is_named() -> None:
    model = trained("gpt2", "pre")
    norms = with_norms(model)
    before = {key: tensor.clone() for key, tensor in tensors_of(model).items()}
    for path, layer in norms.norms:
        if (path, layer) not in (("value", 2), ("final", None)):
            norms.freeze(path, layer)
    for fold in (fold_norms, partial(fold_norms_in_place, tokens=token_ids())):
        with pytest.raises(InputError, match=r"not frozen.*: value of layer 3, final\. Freeze them"):
            fold(model, norms)
    norms.freeze("value", 2)
    norms.freeze("final", None)
    with pytest.raises(InputError, match=r"tokens of class first_position .*query_key of layer 1, .*merge the class"):
        fold_norms(model, norms)
    norms.merge("first_position")
    with pytest.raises(InputError, match=r'class end_of_text .*FrozenNorms\.merge\("end_of_text"\)'):
        fold_norms(model, norms)
    assert all(torch.equal(before[key], tensor) for key, tensor in model.named_parameters())
    norms.merge("end_of_text")
    fold_norms(model, norms)


def test_a_class_that_there_is_not_need_not_be_merged() -> None:
    model = trained("llama", "pre")
    norms = with_norms(model, end_of_text=None)
    freeze_all(norms, merge=False)
    norms.merge("first_position")
    report = measure_fold(model, fold_norms(model, norms))
    assert report.difference <= 1e-5 * report.largest_logit


def test_what_cannot_be_folded_is_refused() -> None:
    model, norms = frozen_model("llama", "pre")
    with pytest.raises(InputError, match="MixLNLlamaModel is no language model"):
        fold_norms(model.base_model, norms)
    with pytest.raises(InputError, match="the norms are not those of the model"):
        fold_norms(copy.deepcopy(model), norms)
    norms.norms["feed_forward", 1].bias = nn.Parameter(torch.ones(32))
    with pytest.raises(InputError, match=r"layers\.1\.mlp\.gate_proj\.weight has no bias, into which the bias of its"):
        fold_norms(model, norms)
    peft = pytest.importorskip("peft")
    peft.get_peft_model(model, peft.LoraConfig(target_modules=["q_proj"]))
    with pytest.raises(PlacementError, match="adapters"):
        fold_norms_in_place(model, norms, token_ids())


@pytest.mark.parametrize("name", ["gpt2", "llama", "olmo"])
def test_text_is_generated_with_the_cache_as_without(name: str) -> None:
    model, norms = frozen_model(name, "lns")
    folded, ids = fold_norms(model, norms), token_ids()
    with_cache, without = (generate(folded, ids, max_new_tokens=8, use_cache=cached) for cached in (True, False))
    assert torch.equal(with_cache, without)
    assert torch.equal(generate(model, ids, max_new_tokens=8, use_cache=True), with_cache)
    # with scales of their own for some classes, which a cache must not shift
    apart = with_norms(other := trained(name, "lns"))
    freeze_all(apart, merge=False)
    with_cache, without = (generate(other, ids, max_new_tokens=8, use_cache=cached) for cached in (True, False))
    assert torch.equal(with_cache, without)


@pytest.mark.parametrize("name", ["gpt2", "llama"])
def test_layers_are_removed_from_it(name: str, tmp_path: Path) -> None:
    model, norms = frozen_model(name, "lns+scaled_embed")
    folded = fold_norms(model, norms)
    ids = token_ids()
    kept = [module for module in folded.modules() if isinstance(module, PlacedBlock)]
    handle = kept[2].register_forward_hook(lambda _module, inputs, _output: inputs[0])
    expected = logits_of(folded, ids)
    handle.remove()
    remove_blocks(find_block_stack(folded), [2])
    torch.testing.assert_close(logits_of(folded, ids), expected)
    folded.save_pretrained(tmp_path)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert loaded.config.placement_depths == [1, 2, 4]
    assert torch.equal(logits_of(loaded, ids), logits_of(folded, ids))


def test_it_is_diagnosed(data: PreparedData) -> None:
    tokenizer = data.tokenizer
    assert isinstance(tokenizer, PreTrainedTokenizerFast)
    model, norms = frozen_model("gpt2", "pre", vocab_size=len(tokenizer))
    texts = ["The assert statement is a convenient way. " * 3, "An expression list yields a tuple. " * 3]
    config = DiagnosisConfig(sequence_length=32, max_tokens=256, performance_tokens=128, gradient_tokens=64)
    found = mixln.diagnose(fold_norms(model, norms), tokenizer, texts, config).models[0]
    frozen = mixln.diagnose(model, tokenizer, texts, config).models[0]
    assert found.num_layers == 4
    assert frozen.performance_of_whole is not None
    assert found.performance_of_whole == pytest.approx(frozen.performance_of_whole, rel=1e-4)
    assert not {"sigma_on_stream", "sigma_in_branch"} & found.series.keys()


def test_the_loss_of_a_run_counts_the_bias_of_the_head() -> None:
    from mixln.tasks.objective import CausalLanguageModelObjective

    model, norms = frozen_model("gpt2", "pre")
    folded, ids = fold_norms(model, norms), token_ids()
    targets = ids.roll(-1, 1)
    loss = CausalLanguageModelObjective(folded, "sdpa")(ids, torch.arange(12)[None].expand(2, -1), targets)
    expected = F.cross_entropy(logits_of(model, ids).flatten(0, 1), targets.flatten(), reduction="sum")
    assert loss.item() == pytest.approx(expected.item(), rel=1e-5)
    loss.backward()
    assert folded.get_parameter("lm_head.bias").grad is not None


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", ["gpt2", "llama"])
def test_it_is_saved_and_reloads(name: str, dtype: torch.dtype, tmp_path: Path) -> None:
    model, norms = frozen_model(name, "lns", dtype)
    folded, ids = fold_norms(model, norms), token_ids()
    folded.save_pretrained(tmp_path)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert loaded.dtype == dtype
    if dtype == torch.float32:  # opened in bfloat16, rotary frequencies stay in float32
        assert torch.equal(logits_of(loaded, ids), logits_of(folded, ids))
    expected = logits_of(model, ids)
    assert (logits_of(loaded, ids) - expected).abs().max() <= TOLERANCE[dtype] * expected.abs().max()


@pytest.mark.slow
def test_the_folder_opens_without_mixln(tmp_path: Path) -> None:
    """Bit for bit the folded model, which is the frozen one up to rounding; the head's bias comes along."""
    cases: list[tuple[str, str, dict[str, Any]]] = [
        ("gpt2", "lns", {"tie_word_embeddings": True}),
        ("llama", "pre+gpas", BIASES),
    ]
    for name, text, changes in cases:
        model, norms = frozen_model(name, text, **changes)
        folded = fold_norms(model, norms)
        report = measure_fold(model, folded)
        assert report.difference <= 1e-5 * report.largest_logit
        write_case(tmp_path / "cases" / name, folded)
        config = json.loads((tmp_path / "cases" / name / "model" / "config.json").read_text())
        assert config["placement"].startswith("none")
        assert "AutoModelForCausalLM" in config["auto_map"]
    faults = open_without_mixln(tmp_path / "cases", tmp_path / "work")
    assert len(faults) == 2
    assert not any(faults.values()), "\n".join(faults.values())


def test_a_model_with_frozen_norms_is_of_the_class_that_is_folded() -> None:
    model = tiny_architecture("gpt2", "pre")
    assert isinstance(model, PlacedForCausalLM)
    norms = install_frozen_norms(model, END_OF_TEXT)
    # never seen any token: the scales are 1, for every class
    freeze_all(norms)
    report = measure_fold(model, fold_norms(model, norms))
    assert report.difference <= 1e-5 * report.largest_logit
