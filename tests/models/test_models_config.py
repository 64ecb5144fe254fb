from __future__ import annotations

import copy
import json
import pickle
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from huggingface_hub.errors import StrictDataclassError
from models_tools import ALL, STOCK, logits_of, tiny_config, tiny_model, token_ids
from transformers import AutoModelForCausalLM

from mixln import MixLNLlamaConfig, MixLNLlamaForCausalLM
from mixln.placement import PlacementError, PlacementWarning

pytestmark = pytest.mark.filterwarnings("ignore::mixln.placement.PlacementWarning")

BAD: dict[str, tuple[dict[str, Any], str]] = {
    "placement is a number": ({"placement": 3}, "'placement' expected str, got int"),
    "standard deviation is a text": ({"initializer_range": "0.1"}, "'initializer_range' expected float, got str"),
    "placement is none": ({"placement": None}, "'placement' expected str, got NoneType"),
    "unknown placement": ({"placement": "prre"}, "'prre'. Did you mean 'pre'? Valid: pre, post"),
    "alpha out of range": ({"placement": "mix(alpha=2)"}, r"in [0, 1]"),
    "more post layers than layers": ({"placement": "mix(post_layers=5)"}, "post_layers=5, but the model has 4 layers"),
    "heads do not divide the width": ({"num_attention_heads": 5, "num_key_value_heads": 5}, "not a multiple"),
    "key-value heads do not divide heads": ({"num_key_value_heads": 3}, "num_key_value_heads (3) does not divide"),
    "negative embedding_std": ({"embedding_std": -0.1}, "embedding_std must be a finite number above 0, not -0.1"),
    "zero embedding_std": ({"embedding_std": 0}, "embedding_std must be a finite number above 0, not 0"),
    "embedding_std is nan": ({"embedding_std": float("nan")}, "embedding_std must be a finite number above 0, not nan"),
    "infinite embedding_std": (
        {"embedding_std": float("inf")},
        "embedding_std must be a finite number above 0, not inf",
    ),
    "embedding_std is a text": ({"embedding_std": "small"}, "'embedding_std' with value 'small'"),
    "rotary heads of odd size": ({"head_dim": 9}, "the size of a head (9) must be even"),
    "no key-value head": ({"num_key_value_heads": 0}, "num_key_value_heads (0) does not divide"),
    "no layer": ({"num_hidden_layers": 0}, "at least 1 layer"),
    "a text for a size": ({"hidden_size": "32"}, "hidden_size"),
    "too few depths": ({"placement_depths": [1, 2]}, "not 4 ascending"),
    "depths out of order": ({"placement_depths": [1, 3, 2, 4]}, "not 4 ascending"),
    "doubled depth": ({"placement_depths": [1, 2, 2, 4]}, "not 4 ascending"),
    "depth beyond the model": ({"placement_depths": [1, 2, 3, 5]}, "from 1 to 4"),
    "depth beyond the original": ({"placement_depths": [1, 2, 3, 9], "placement_num_layers": 8}, "from 1 to 8"),
    "depths are texts": ({"placement_depths": ["1", "2", "3", "4"]}, "'placement_depths' with value"),
    "broken depths": ({"placement_depths": [1.5, 2, 3, 4]}, "'placement_depths' with value"),
    "broken number of layers": ({"placement_num_layers": 4.5}, "'placement_num_layers' with value 4.5"),
    "fewer layers than there are": ({"placement_num_layers": 3}, "from 1 to 3"),
}


@pytest.mark.parametrize("case", BAD)
def test_a_config_that_makes_no_sense_is_refused(case: str) -> None:
    changes, message = BAD[case]
    fields = tiny_config().to_dict() | changes
    with pytest.raises((StrictDataclassError, PlacementError, ValueError)) as caught:
        MixLNLlamaConfig(**fields)
    assert message in str(caught.value)


def test_a_config_is_checked_again_before_it_is_saved(tmp_path: Path) -> None:
    config = tiny_config()
    config.placement = "mix(post_layers=9)"
    with pytest.raises((StrictDataclassError, PlacementError)):
        config.save_pretrained(tmp_path)


@pytest.mark.parametrize("text", ALL)
def test_a_config_survives_every_copy(text: str, tmp_path: Path) -> None:
    config = tiny_config(text, embedding_std=0.5)
    config.save_pretrained(tmp_path)
    copies = [
        copy.deepcopy(config),
        pickle.loads(pickle.dumps(config)),
        MixLNLlamaConfig.from_dict(config.to_dict()),
        MixLNLlamaConfig.from_pretrained(tmp_path),
    ]
    for other in copies:
        assert other.placement == config.placement
        assert other.stack_plan == config.stack_plan
        assert other.embedding_std == 0.5
        assert other.to_dict()["placement"] == config.placement


def test_the_placement_is_stored_in_its_printed_form() -> None:
    assert tiny_config(" mix ( ) + scaled_embed").placement == "mix(alpha=0.25)+scaled_embed"


@pytest.mark.parametrize("text", [*ALL, *STOCK])
def test_stock_is_what_stock_llama_computes(text: str) -> None:
    config = tiny_config(text)
    assert config.is_stock == (text in STOCK)
    assert ("mixln placement" in str(config.to_dict()["initializer_range"])) == (text not in STOCK)


def test_folders_that_were_written_before_the_refusal_moved_still_open() -> None:
    written = tiny_config("lns").to_dict()
    refusal, own = written["initializer_range"], written.pop("own_initializer_range")
    written |= {"initializer_range": own, "layer_types": [refusal, *["full_attention"] * 3]}
    config = MixLNLlamaConfig.from_dict(written)
    assert config.to_dict() == tiny_config("lns").to_dict()


def test_a_pruned_stack_is_stock_only_by_what_it_computes() -> None:
    pruned: dict[str, Any] = {"num_hidden_layers": 2, "placement_depths": [1, 4], "placement_num_layers": 4}
    assert tiny_config("pre", **pruned).is_stock
    assert not tiny_config("lns", **pruned).is_stock
    # both surviving layers of a deep Mix-LN stack may be its Pre-LN ones
    assert tiny_config("mix(post_layers=1)", **(pruned | {"placement_depths": [2, 4]})).is_stock


@pytest.mark.parametrize("text", ["lns", "mix(post_layers=2)", "deepnorm", "sandwich"])
def test_a_pruned_model_keeps_what_each_surviving_layer_was(text: str, tmp_path: Path) -> None:
    kept = [0, 1, 3, 5]
    whole = tiny_model(text, num_hidden_layers=6)
    config = tiny_config(
        text, num_hidden_layers=4, placement_depths=[position + 1 for position in kept], placement_num_layers=6
    )
    pruned = MixLNLlamaForCausalLM(config).eval()
    weights = {name: tensor for name, tensor in whole.state_dict().items() if "layers." not in name}
    for new, old in enumerate(kept):
        prefix = f"model.layers.{old}."
        weights |= {
            f"model.layers.{new}.{name.removeprefix(prefix)}": tensor
            for name, tensor in whole.state_dict().items()
            if name.startswith(prefix)
        }
    pruned.load_state_dict(weights)
    ids = token_ids()
    expected = logits_without(whole, [2, 4], ids)
    assert torch.equal(logits_of(pruned, ids), expected)

    pruned.save_pretrained(tmp_path)
    loaded = MixLNLlamaForCausalLM.from_pretrained(tmp_path)
    assert loaded.config.placement_depths == [1, 2, 4, 6]
    assert torch.equal(logits_of(loaded, ids), expected)

    if text in ("lns", "deepnorm"):
        naive = MixLNLlamaForCausalLM(tiny_config(text, num_hidden_layers=4)).eval()
        naive.load_state_dict(weights)
        assert not torch.allclose(logits_of(naive, ids), expected, atol=1e-2)


def logits_without(model: MixLNLlamaForCausalLM, positions: list[int], ids: torch.Tensor) -> torch.Tensor:
    """Logits with some blocks skipped, their output being their input."""
    hooks = [
        model.get_submodule(f"model.layers.{position}").register_forward_hook(lambda _m, args, _output: args[0])
        for position in positions
    ]
    logits = logits_of(model, ids)
    for hook in hooks:
        hook.remove()
    return logits


def test_scaled_init_on_lns_warns() -> None:
    with pytest.warns(PlacementWarning, match="takes away the effect of LayerNorm Scaling"):
        tiny_config("lns+scaled_init", num_hidden_layers=7)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        tiny_config("pre+scaled_init", num_hidden_layers=7)


@pytest.mark.parametrize("other", ["pre", None, "mix"])
def test_a_placement_that_was_changed_by_hand_is_noticed(other: str | None, tmp_path: Path) -> None:
    tiny_model("lns").save_pretrained(tmp_path)
    path = tmp_path / "config.json"
    values = json.loads(path.read_text())
    if other is None:
        del values["placement"]
    else:
        values["placement"] = other
    path.write_text(json.dumps(values))
    with pytest.raises(PlacementError, match=r"was written for another \(mixln placement 'lns'\)"):
        AutoModelForCausalLM.from_pretrained(tmp_path)


def test_a_config_that_was_changed_after_construction_is_not_saved(tmp_path: Path) -> None:
    model = tiny_model("lns")
    model.config.placement = "pre"
    with pytest.raises(ValueError, match="the model was built with another"):
        model.save_pretrained(tmp_path)
    assert not list(tmp_path.iterdir())
    model.config.placement = "lns+scaled_init"  # says only how weights were drawn
    model.save_pretrained(tmp_path)
