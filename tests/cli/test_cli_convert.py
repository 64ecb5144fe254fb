"""`mixln convert --to hf` as its user meets it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerBase

from mixln import MixLNLlamaConfig, MixLNLlamaForCausalLM
from mixln.cli import main
from mixln.data import PreparedData


def write_model(folder: Path, placement: str, tokenizer: PreTrainedTokenizerBase | None = None) -> Path:
    sizes: dict[str, Any] = {"vocab_size": 400, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 4}
    model = MixLNLlamaForCausalLM(MixLNLlamaConfig(**sizes, num_attention_heads=4, placement=placement)).initialize(0)
    model.save_pretrained(folder)
    if tokenizer is not None:
        tokenizer.save_pretrained(folder)
    return folder


@pytest.mark.parametrize(("placement", "wanted"), [("lns", "LlamaForCausalLM"), ("peri", "Glm4ForCausalLM")])
def test_convert_to_hf_writes_a_stock_model_and_says_how_far_it_is(
    placement: str, wanted: str, data: PreparedData, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source, out = write_model(tmp_path / "model", placement, data.tokenizer), tmp_path / "exported"
    assert main(["convert", str(source), str(out), "--to", "hf"]) == 0
    shown = capsys.readouterr()
    model, original = (AutoModelForCausalLM.from_pretrained(folder) for folder in (out, source))
    assert type(model).__name__ == wanted
    parameters = sum(parameter.numel() for parameter in model.parameters())
    assert shown.out.startswith(f"{out}: {wanted}, {parameters:,} parameters; its logits differ by ")
    assert shown.out.strip().endswith("(float32)")
    assert "Loading" not in shown.err
    ids = torch.arange(12)[None]
    torch.testing.assert_close(model(input_ids=ids).logits, original(input_ids=ids).logits, rtol=1e-4, atol=1e-5)
    assert main(["generate", str(out), "The assert statement", "--max-new-tokens", "3"]) == 0
    assert capsys.readouterr().out.startswith("The assert statement")


BAD = {
    "convert {tmp}/mix {tmp}/out --to hf": "no class of transformers computes placement 'mix(alpha=0.25)'",
    "convert {tmp}/none {tmp}/out --to hf": "no norm before the head",
    "convert {tmp}/mix {tmp}/out": "say what to do: --placement PLACEMENT",
    "convert {tmp}/mix {tmp}/out --to gguf": "--to gguf is not known. Valid: hf, hf-neutral-norms",
    "convert {tmp}/mix {tmp}/out --to hf --placement mix": "--to and --placement contradict each other",
    "convert {tmp}/stock {tmp}/out --to hf": "a LlamaForCausalLM, which is a class of transformers already",
    "convert {tmp}/nothing {tmp}/out --to hf": "there is no folder",
    "convert {tmp}/empty {tmp}/out --to hf": "has no config.json",
    "convert {tmp}/lns {tmp}/mix --to hf": "exists already",
    "convert {tmp}/lns {tmp}/lns/config.json/out --to hf": "could not be written",
}


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models")
    for placement in ("mix", "none", "lns"):
        write_model(folder / placement, placement)
    config = LlamaConfig(
        vocab_size=97, hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2
    )
    LlamaForCausalLM(config).save_pretrained(folder / "stock")
    (folder / "empty").mkdir()
    return folder


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_one_message(case: str, models: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = sorted(models.iterdir())
    assert main(case.format(tmp=models).split()) == 2
    error = capsys.readouterr().err
    assert "Traceback" not in error
    (message,) = (line for line in error.splitlines() if line.startswith("mixln: "))
    assert message.startswith("mixln: ")
    assert BAD[case] in message
    assert sorted(models.iterdir()) == before
