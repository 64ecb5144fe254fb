"""A checkpoint is opened as what it is, or not at all."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from models_tools import ALL, SCHEMES, STOCK, logits_of, tiny_config, tiny_model, token_ids
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

from mixln import MixLNLlamaForCausalLM

pytestmark = pytest.mark.filterwarnings("ignore::mixln.placement.PlacementWarning")

OTHERS = [text for text in ALL if text not in STOCK]


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("text", STOCK)
def test_a_pre_folder_opens_as_stock_llama(text: str, tied: bool, tmp_path: Path) -> None:
    model, ids = tiny_model(text, tie_word_embeddings=tied), token_ids()
    model.save_pretrained(tmp_path)
    stock = LlamaForCausalLM.from_pretrained(tmp_path)
    assert type(stock) is LlamaForCausalLM
    assert torch.equal(logits_of(stock, ids), logits_of(model, ids))


@pytest.mark.parametrize("tied", [True, False])
def test_a_stock_checkpoint_opens_as_pre(tied: bool, tmp_path: Path) -> None:
    fields: dict[str, Any] = tiny_config(tie_word_embeddings=tied).to_dict()
    for name in ("placement", "embedding_std", "placement_depths", "placement_num_layers", "model_type"):
        fields.pop(name)
    stock = LlamaForCausalLM(LlamaConfig(**fields)).eval()
    stock.save_pretrained(tmp_path)
    model, ids = MixLNLlamaForCausalLM.from_pretrained(tmp_path), token_ids()
    assert model.config.placement == "pre"
    assert torch.equal(logits_of(model, ids), logits_of(stock, ids))


def test_what_opened_a_stock_checkpoint_saves_one_again(tmp_path: Path) -> None:
    tiny_model("pre").save_pretrained(tmp_path / "one")
    stock = LlamaForCausalLM.from_pretrained(tmp_path / "one")
    stock.save_pretrained(tmp_path / "two")
    loaded = MixLNLlamaForCausalLM.from_pretrained(tmp_path / "two")
    assert torch.equal(logits_of(loaded, token_ids()), logits_of(tiny_model("pre"), token_ids()))


SCRIPT = """
import json, sys, warnings
from transformers import AutoConfig, AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM
from transformers.utils import logging
logging.set_verbosity_error()
opened = {}
for folder in sys.argv[1:]:
    opened[folder] = {}
    for name in (LlamaForCausalLM, LlamaConfig, AutoModelForCausalLM, AutoConfig):
        try:
            name.from_pretrained(folder)
            opened[folder][name.__name__] = None
        except Exception as error:
            opened[folder][name.__name__] = str(error)
assert not [name for name in sys.modules if name.split(".")[0] == "mixln"]
print(json.dumps(opened))
"""


@pytest.mark.slow
def test_without_this_library_no_other_placement_opens_and_pre_does(tmp_path: Path) -> None:
    folders = {str(tmp_path / str(number)): text for number, text in enumerate(OTHERS)}
    for folder, text in folders.items():
        tiny_model(text, num_hidden_layers=2 if "post_layers" not in text else 4).save_pretrained(folder)
    # of two layers, a quarter is none: let it have one
    for folder, text in folders.items():
        if text.startswith("mix") and "post_layers" not in text:
            tiny_model(text).save_pretrained(folder)
    pre = str(tmp_path / "pre")
    tiny_model("pre").save_pretrained(pre)
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, *folders, pre], capture_output=True, text=True, check=True, cwd=tmp_path
    )
    opened = json.loads(done.stdout)
    for folder, text in folders.items():
        assert opened[folder].keys() == {"LlamaForCausalLM", "LlamaConfig", "AutoModelForCausalLM", "AutoConfig"}
        for name, error in opened[folder].items():
            assert error is not None, f"{name} opened a checkpoint of {text}"
            expected = "import mixln" if name.startswith("Llama") else "mixln_llama"
            assert expected in error, f"{name} on {text}: {error}"
    assert opened[pre]["LlamaForCausalLM"] is None
    assert opened[pre]["LlamaConfig"] is None


@pytest.mark.parametrize("text", [text for text in OTHERS if text in SCHEMES])
def test_the_stock_class_refuses_other_placements_here_too(text: str, tmp_path: Path) -> None:
    tiny_model(text).save_pretrained(tmp_path)
    with pytest.raises(Exception, match="import mixln"):
        LlamaForCausalLM.from_pretrained(tmp_path)


def change_placement(folder: Path, placement: str) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"placement": placement}))


@pytest.mark.parametrize(
    ("saved", "opened", "missing", "left_over"),
    [
        ("pre", "post", "layers.0.post_feedforward_layernorm.weight", "layers.0.input_layernorm.weight"),
        ("post", "pre", "layers.3.input_layernorm.weight", "layers.3.post_feedforward_layernorm.weight"),
        ("sandwich", "lns", None, "layers.1.pre_feedforward_layernorm.weight"),
        ("lns", "sandwich", "layers.2.pre_feedforward_layernorm.weight", None),
        ("mix", "mix(post_layers=2)", "layers.1.post_feedforward_layernorm.weight", "layers.1.input_layernorm.weight"),
    ],
)
def test_a_checkpoint_of_another_placement_is_refused_and_the_parameters_listed(
    saved: str, opened: str, missing: str | None, left_over: str | None, tmp_path: Path
) -> None:
    tiny_model(saved).save_pretrained(tmp_path)
    messages: list[str] = []
    with pytest.raises(ValueError, match="does not fit placement") as caught:
        MixLNLlamaForCausalLM.from_pretrained(tmp_path, placement=opened)
    messages.append(str(caught.value))
    change_placement(tmp_path, opened)
    if 'initializer_range": "mixln placement' in (tmp_path / "config.json").read_text():
        with pytest.raises(ValueError, match="but was written for another"):
            AutoModelForCausalLM.from_pretrained(tmp_path)
    else:
        with pytest.raises(ValueError, match="does not fit placement") as caught:
            AutoModelForCausalLM.from_pretrained(tmp_path)
        messages.append(str(caught.value))
    for message in messages:
        for what, name in (("missing: ", missing), ("left over: ", left_over)):
            assert (what in message) == (name is not None)
            assert name is None or f"model.{name}" in message


def test_a_lost_weight_is_an_error_and_not_a_fresh_draw(tmp_path: Path) -> None:
    tiny_model("mix").save_pretrained(tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    weights.pop("model.layers.2.mlp.up_proj.weight")
    weights["stray"] = torch.zeros(1)
    save_file(weights, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ValueError, match=r"missing: model.layers.2.mlp.up_proj.weight; left over: stray"):
        AutoModelForCausalLM.from_pretrained(tmp_path)


def test_loading_information_is_returned_when_asked_for(tmp_path: Path) -> None:
    tiny_model("post").save_pretrained(tmp_path)
    model, info = MixLNLlamaForCausalLM.from_pretrained(tmp_path, output_loading_info=True)
    assert isinstance(model, MixLNLlamaForCausalLM)
    assert not info["missing_keys"]
    assert not info["unexpected_keys"]


def test_loading_draws_nothing_and_leaves_the_global_generator_alone(tmp_path: Path) -> None:
    tiny_model("post").save_pretrained(tmp_path)
    torch.manual_seed(0)
    state = torch.get_rng_state()
    MixLNLlamaForCausalLM.from_pretrained(tmp_path)
    assert torch.equal(torch.get_rng_state(), state)
