"""Every class of transformers, built small: mixln is right, or says in one line why not.

What each class gave when docs/reference/supported-models.md was made is in `expected.json`: what was right must stay
so. A class that is not in it (of a newer transformers) has to be right or refused.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from tests.sweep import diagnosing, pruning, reference
from tests.sweep.building import build, model_rows
from tests.sweep.catalogue import catalogue, entry_of
from tests.sweep.healing import HealingData, healing_data
from tests.sweep.sweep import CHECKS, sweep_class

EXPECTED: dict[str, dict[str, list[str]]] = json.loads((Path(__file__).parent / "expected.json").read_text())

REPRESENTATIVE = {
    "LlamaForCausalLM": "plain",
    "MixtralForCausalLM": "experts",
    "DeepseekV3ForCausalLM": "experts in some layers, latent attention",
    "Gemma3ForCausalLM": "sliding windows in some layers",
    "Gemma4ForCausalLM": "keys and values shared between layers",
    "MambaForCausalLM": "recurrent",
    "Zamba2ForCausalLM": "recurrent, with attention that layers share",
    "BloomForCausalLM": "attention biased by position, without position ids",
    "CamembertForCausalLM": "positions that do not begin at 0",
    "MistralModel": "a base model that keeps a cache",
    "BertForMaskedLM": "encoder with a head",
    "T5Model": "encoder and decoder",
    "ViTModel": "images",
    "PixtralVisionModel": "images, all of which it puts into one row",
    "ConvNextForImageClassification": "images, in stages of different widths",
    "LlavaForConditionalGeneration": "images and text",
    "LlamaForSequenceClassification": "another head",
}


@pytest.fixture(scope="session")
def sweep_data(tmp_path_factory: pytest.TempPathFactory) -> HealingData:
    return healing_data(tmp_path_factory.mktemp("sweep"))


def _parameters() -> list[Any]:
    return [
        pytest.param(entry.name, marks=() if entry.name in REPRESENTATIVE else pytest.mark.slow)
        for entry in catalogue()
    ]


@pytest.mark.parametrize("name", _parameters())
def test_right_or_refused_in_one_line(name: str, sweep_data: HealingData, tmp_path: Path) -> None:
    result = sweep_class(entry_of(name), tmp_path, sweep_data, thorough=False)
    assert not result.faults
    for check in CHECKS:
        found = result.of(check)
        allowed = EXPECTED.get(name, {}).get(check)
        if found is not None and allowed is not None:
            assert found.status in ("right", *allowed), f"{check} is not {allowed} any more: {found.detail}"


def test_the_representative_classes_are_there() -> None:
    assert {entry.name for entry in catalogue()} >= set(REPRESENTATIVE)


def test_a_bypassed_block_is_one_that_is_not_there() -> None:
    model = build(entry_of("LlamaForCausalLM"))
    row = model_rows(model)[0]
    bypassed = reference.changed_copy(model, "model.layers", reference.Forms(model, "model.layers", row).bypassed([1]))
    layers = model.get_submodule("model.layers")
    del layers[1]  # pyright: ignore[reportIndexIssue]
    model.config.num_hidden_layers = 3
    assert torch.equal(reference.run(bypassed, row).logits, reference.run(model, row).logits)


def test_what_is_wrong_is_noticed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    entry = entry_of("LlamaForCausalLM")
    model = build(entry)
    stock = entry.model_class.from_pretrained(pruning.save(model, tmp_path / "whole")).eval()
    assert pruning.command("prune", str(tmp_path / "whole"), str(tmp_path / "out"), "--layers", "2").status == 0
    weights = load_file(tmp_path / "out" / "model.safetensors")
    weights["model.layers.1.mlp.down_proj.weight"] *= 1.01
    save_file(weights, tmp_path / "out" / "model.safetensors", {"format": "pt"})
    assert "outputs of the folder differ" in str(pruning.folder_trouble(entry, stock, tmp_path / "out", 2))
    # a diagnosis of another model than the reference's
    other = build(entry)
    with torch.no_grad():
        other.get_parameter("model.layers.2.mlp.down_proj.weight").mul_(1.01)
    diagnose = diagnosing.diagnose_model
    monkeypatch.setattr(diagnosing, "diagnose_model", lambda _model, *given: diagnose(other.double(), *given))
    found = {outcome.check: outcome.status for outcome in diagnosing.check_diagnosis(model)}
    assert set(found.values()) == {"WRONG"}
