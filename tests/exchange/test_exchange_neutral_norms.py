"""Models without norms in stock classes, whose norms are made the identity."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from architecture_tools import tiny_architecture
from models_tools import generate, logits_of, token_ids
from norm_removal_tools import frozen_model
from torch import nn
from transformers import AutoModelForCausalLM

import mixln
from mixln.cli import main
from mixln.errors import InputError
from mixln.exchange.export import save_stock, stock_model
from mixln.exchange.neutral_norms import NEUTRAL_EPS, NEUTRAL_WEIGHT
from mixln.tasks.norm_removal import fold_norms
from mixln.tasks.norm_removal.task import removable_plan

pytestmark = pytest.mark.filterwarnings("ignore::mixln.placement.PlacementWarning")

BIASES = {"attention_bias": True, "mlp_bias": True}
CLASSES: list[tuple[str, str, dict[str, Any], str]] = [
    ("gpt2", "pre", {}, "GPT2LMHeadModel"),
    ("gpt2", "lns+scaled_embed", {"tie_word_embeddings": True}, "GPT2LMHeadModel"),
    ("llama", "pre", BIASES, "LlamaForCausalLM"),
    ("llama", "lns+scaled_embed", {"tie_word_embeddings": True}, "LlamaForCausalLM"),
    ("qwen2", "lns", {}, "Qwen2ForCausalLM"),
    ("mistral", "pre", {"sliding_window": 5}, "MistralForCausalLM"),
    ("qwen3", "pre", {}, "Qwen3ForCausalLM"),
    ("olmo2", "lns", {}, "Olmo2ForCausalLM"),
]
TOLERANCE = {torch.float64: 1e-7, torch.float32: 1e-5, torch.bfloat16: 4e-2}
"""Of the largest logit. In float64 transformers' RMSNorm works in float32 all the same; GPT-2 has 1e-10."""


def folded_model(name: str, text: str, dtype: torch.dtype = torch.float32, **changes: Any) -> Any:
    return fold_norms(*frozen_model(name, text, dtype, **changes))


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize(("name", "text", "changes", "wanted"), CLASSES)
def test_a_stock_class_computes_the_function(
    name: str, text: str, changes: dict[str, Any], wanted: str, dtype: torch.dtype
) -> None:
    model = folded_model(name, text, dtype, **changes)
    stock = stock_model(model, neutral_norms=True)
    assert type(stock).__name__ == wanted
    assert type(stock).__module__.startswith("transformers.")
    ids = token_ids(length=20)
    expected, found = logits_of(model, ids).double(), logits_of(stock, ids).double()
    tolerance = 1e-10 if (name, dtype) == ("gpt2", torch.float64) else TOLERANCE[dtype]
    assert (found - expected).abs().max() <= tolerance * expected.abs().max()
    assert {parameter.dtype for parameter in stock.parameters()} == {dtype}
    assert torch.equal(generate(stock, ids, max_new_tokens=5), generate(stock, ids, max_new_tokens=5, use_cache=False))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_neutral_norm_rounds_nothing(dtype: torch.dtype) -> None:
    x = torch.randn(4, 7, 64, generator=torch.Generator().manual_seed(0)).to(dtype) * 10
    stock: Any = stock_model(folded_model("llama", "pre", dtype, hidden_size=64), neutral_norms=True)
    assert torch.equal(stock.model.norm(x), x)
    # LayerNorm is the identity where there is no mean
    norm = nn.LayerNorm(128, eps=NEUTRAL_EPS, dtype=dtype)
    nn.init.constant_(norm.weight, NEUTRAL_WEIGHT)
    mirrored = torch.cat([x, -x], dim=-1)
    torch.testing.assert_close(norm(mirrored), mirrored, rtol=0, atol=1e-5)


def test_the_error_is_the_variance_by_twice_eps() -> None:
    """x / sqrt(1 + v / eps) = x (1 - v / (2 eps)) for v much smaller than eps."""
    norm = nn.LayerNorm(64, eps=NEUTRAL_EPS, dtype=torch.float64)
    nn.init.constant_(norm.weight, NEUTRAL_WEIGHT)
    x = torch.randn(64, dtype=torch.float64, generator=torch.Generator().manual_seed(0)) * 1e4
    x = x - x.mean()
    variance = x.pow(2).mean()
    torch.testing.assert_close(1 - norm(x) / x, (variance / 2**41).expand(64), rtol=1e-3, atol=1e-15)


def test_the_bias_of_the_head_is_in_the_final_norm() -> None:
    model, norms = frozen_model("gpt2", "pre", torch.float64)
    final = norms.norms["final", None]
    # W diag(gamma) / sigma a = W beta
    expected = final.bias * final.sigma[0, 0].double() / final.weight
    stock: Any = stock_model(fold_norms(model, norms), neutral_norms=True)
    torch.testing.assert_close(stock.transformer.ln_f.bias, expected, rtol=1e-9, atol=1e-9)
    assert stock.lm_head.bias is None
    assert stock.config.layer_norm_epsilon == 2.0**40


def test_pruned_and_headless_models_go_too() -> None:
    model = folded_model("gpt2", "lns", num_hidden_layers=3, placement_depths=[1, 3, 6], placement_num_layers=7)
    ids = token_ids()
    torch.testing.assert_close(logits_of(stock_model(model, neutral_norms=True), ids), logits_of(model, ids))
    stack = stock_model(model.base_model, neutral_norms=True)
    assert type(stack).__name__ == "GPT2Model"
    torch.testing.assert_close(
        stack(input_ids=ids).last_hidden_state, model.base_model(input_ids=ids).last_hidden_state, rtol=1e-4, atol=1e-4
    )


def test_half_precision_cannot_hold_the_gain() -> None:
    with pytest.raises(InputError, match=r"2\^20, which float16 cannot hold .*: export it in bfloat16 or float32"):
        stock_model(folded_model("llama", "pre", torch.float16), neutral_norms=True)


def test_what_does_not_go_is_refused_with_the_reason() -> None:
    with pytest.raises(InputError, match="the norms of olmo cannot be made to do nothing: they lack a gain"):
        stock_model(folded_model("olmo", "pre"), neutral_norms=True)
    with pytest.raises(InputError, match=r"departs from LlamaForCausalLM with neutral norms \(none\).*N_in"):
        stock_model(tiny_architecture("llama", "lns"), neutral_norms=True)
    with pytest.raises(InputError, match=r"neutral norms \(none\): a trained gate"):
        stock_model(folded_model("llama", "pre+gpas"), neutral_norms=True)
    # trained without norms: its stream has a mean
    with pytest.raises(InputError, match=r"wte\.weight writes a mean to the stream"):
        stock_model(tiny_architecture("gpt2", "none"), neutral_norms=True)
    # its head has a bias of its own
    with pytest.raises(InputError, match="the head has a bias that is not 0, and the final norm has no bias"):
        stock_model(tiny_architecture("llama", "none"), neutral_norms=True)
    model = folded_model("gpt2", "pre")
    with torch.no_grad():
        model.lm_head.bias.normal_()
    with pytest.raises(InputError, match="no bias of the final norm gives the head's bias"):
        stock_model(model, neutral_norms=True)


def test_the_exact_export_says_that_there_is_this_way() -> None:
    with pytest.raises(InputError, match=r"no norm before the head.*`to=hf-neutral-norms`"):
        stock_model(folded_model("gpt2", "pre"))
    with pytest.raises(InputError) as caught:
        stock_model(tiny_architecture("llama", "post"))
    assert "neutral" not in str(caught.value)


@pytest.mark.parametrize("name", ["gpt2", "llama"])
def test_it_is_written_and_compared(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = folded_model(name, "lns")
    model.save_pretrained(tmp_path / "model")
    out = tmp_path / "out"
    assert main(["convert", str(tmp_path / "model"), str(out), "--to", "hf-neutral-norms"]) == 0
    assert "its logits differ by" in capsys.readouterr().out
    opened = AutoModelForCausalLM.from_pretrained(out)
    assert type(opened).__module__.startswith("transformers.")
    ids = token_ids()
    expected = logits_of(model, ids)
    assert (logits_of(opened, ids) - expected).abs().max() <= 1e-5 * expected.abs().max()
    assert main(["convert", str(tmp_path / "model"), str(tmp_path / "other"), "--to", "hf"]) == 2
    assert "--to hf-neutral-norms" in capsys.readouterr().err
    # an export is a model of a stock class again, with norms that can be taken for what they are
    report = save_stock(tmp_path / "model", tmp_path / "again", neutral_norms=True)
    assert report.difference <= 1e-5 * report.largest_logit
    _, change = mixln.apply_placement(opened, "none")
    assert not change.keeps_function


@pytest.mark.parametrize("name", ["gpt2", "llama"])
def test_its_norms_are_no_norms_to_remove(name: str) -> None:
    stock: Any = stock_model(folded_model(name, "pre"), neutral_norms=True)
    with pytest.raises(InputError, match=r"do nothing: their eps of 1.1e\+12"):
        removable_plan(stock.config)
    placed, _ = mixln.apply_placement(stock, "pre")
    with pytest.raises(InputError, match="do nothing"):
        removable_plan(placed.config)
