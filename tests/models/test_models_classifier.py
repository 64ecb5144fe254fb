"""Sequence classification of every architecture under every placement: one head, read at the last token of a text."""

from __future__ import annotations

import itertools
import json
import pickle
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from architecture_tools import CAUSAL, CAUSAL_PAIRS, STOCK, tiny_architecture, tiny_architecture_config
from cover import shared_out
from models_tools import assert_same_tensors, token_ids
from safetensors.torch import load_file, save_file
from transformers import AutoModel, AutoModelForCausalLM, AutoModelForSequenceClassification

import mixln
from mixln.models import ARCHITECTURES
from mixln.models.decoder import PlacedForSequenceClassification
from mixln.placement import PlacementWarning

pytestmark = pytest.mark.filterwarnings("ignore::mixln.placement.PlacementWarning")

PAD = 0


def classifier(name: str, placement: str, **changes: Any) -> Any:
    """One with a stack whose every layer does something."""
    config = tiny_architecture_config(name, placement, **({"pad_token_id": PAD, "num_labels": 1} | changes))
    model: Any = AutoModelForSequenceClassification.from_config(config)
    model.base_model.load_state_dict(tiny_architecture(name, placement).base_model.state_dict())
    return model.eval()


def scores(model: Any, ids: torch.Tensor, **options: Any) -> torch.Tensor:
    with torch.no_grad():
        return model(input_ids=ids, **options).logits


def score_alone(model: Any, ids: list[int]) -> torch.Tensor:
    """What the head makes of the stack's last state of one text, without padding."""
    with torch.no_grad():
        hidden = model.base_model(input_ids=torch.tensor([ids]), use_cache=False).last_hidden_state
        return hidden[0, -1] @ model.score.weight.T


@shared_out(("name", "placement"), CAUSAL_PAIRS, share=0, of=3)
def test_a_padded_row_has_the_score_that_it_has_alone(name: str, placement: str) -> None:
    model = classifier(name, placement)
    texts = [ids[:length].tolist() for ids, length in zip(token_ids(3, 9), (9, 4, 6), strict=True)]
    expected = torch.stack([score_alone(model, text) for text in texts])
    assert expected.unique().numel() == 3
    for side in ("right", "left"):
        ids, mask = torch.full((3, 9), PAD), torch.zeros(3, 9, dtype=torch.long)
        for row, text in enumerate(texts):
            where = slice(0, len(text)) if side == "right" else slice(9 - len(text), 9)
            ids[row, where], mask[row, where] = torch.tensor(text), 1
        torch.testing.assert_close(scores(model, ids, attention_mask=mask), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", CAUSAL)
def test_one_row_needs_no_padding_token_and_several_do(name: str) -> None:
    model = classifier(name, STOCK[name], pad_token_id=None)
    ids = token_ids(2, 7)
    torch.testing.assert_close(scores(model, ids[:1])[0], score_alone(model, ids[0].tolist()))
    with pytest.raises(ValueError, match="no padding token"):
        model(input_ids=ids)


@shared_out(("name", "placement"), CAUSAL_PAIRS, share=1, of=3)
def test_a_language_model_opens_with_a_new_head_and_nothing_else_is_new(
    name: str, placement: str, tmp_path: Path
) -> None:
    language_model = tiny_architecture(name, placement, initializer_range=0.02)
    language_model.save_pretrained(tmp_path / "language_model")
    torch.manual_seed(0)
    model, info = AutoModelForSequenceClassification.from_pretrained(
        tmp_path / "language_model", num_labels=1, output_loading_info=True
    )
    assert type(model) in ARCHITECTURES[name].head_classes
    assert set(info["missing_keys"]) == set(type(model).new_head) == {"score.weight"}
    for parameter_name, parameter in language_model.base_model.named_parameters():
        assert torch.equal(model.base_model.get_parameter(parameter_name), parameter)
    assert 0 < model.score.weight.std() < 0.5
    model.save_pretrained(tmp_path / "classifier")
    again = AutoModelForSequenceClassification.from_pretrained(tmp_path / "classifier")
    assert type(again) is type(model)
    assert again.config.placement == model.config.placement
    ids = token_ids(1, 7)
    assert_same_tensors(again, model)
    torch.testing.assert_close(scores(again.eval(), ids), scores(model.eval(), ids))


@pytest.mark.parametrize("name", CAUSAL)
def test_a_checkpoint_that_lacks_or_has_more_is_refused(name: str, tmp_path: Path) -> None:
    """Also of a classifier's own head, which a language model may lack."""
    tiny_architecture(name, STOCK[name]).save_pretrained(tmp_path / "language_model")
    classifier(name, STOCK[name]).save_pretrained(tmp_path / "classifier")
    for folder, change, message in [
        ("language_model", ("drop", "down_proj|mlp.c_proj.weight"), "missing: .*(down_proj|c_proj)"),
        ("language_model", ("add", "further.weight"), r"left over: further\.weight"),
        ("classifier", ("drop", "score.weight"), r"missing: score\.weight"),
    ]:
        file = tmp_path / folder / "model.safetensors"
        weights = {key: tensor.clone() for key, tensor in load_file(file).items()}  # the file is to be overwritten
        action, part = change
        if action == "add":
            changed = {**weights, part: torch.ones(2)}
        else:
            first = next(key for key in weights if any(one in key for one in part.split("|")))
            changed = {key: tensor for key, tensor in weights.items() if key != first}
        save_file(changed, file, metadata={"format": "pt"})
        with pytest.raises(ValueError, match=message):
            AutoModelForSequenceClassification.from_pretrained(tmp_path / folder, num_labels=1)
        save_file(weights, file, metadata={"format": "pt"})
    with pytest.raises(ValueError, match=r"missing: lm_head\.weight"):
        AutoModelForCausalLM.from_pretrained(tmp_path / "classifier")


@pytest.mark.parametrize("name", CAUSAL)
def test_it_is_the_stock_one_at_its_stock_placement(name: str, tmp_path: Path) -> None:
    config = tiny_architecture_config(name, STOCK[name], pad_token_id=PAD, num_labels=3)
    torch.manual_seed(0)
    model: Any = AutoModelForSequenceClassification.from_config(config).eval()
    assert isinstance(model, PlacedForSequenceClassification)
    stock_class: Any = type(model).__bases__[1]
    stock = stock_class(mixln.stock_model(AutoModel.from_config(config)).config).eval()
    stock.load_state_dict(model.state_dict())
    ids = token_ids()
    ids[1, -4:] = PAD
    mask = (ids != PAD).long()
    expected = scores(stock, ids, attention_mask=mask)
    assert torch.equal(scores(model, ids, attention_mask=mask), expected)
    assert torch.equal(model(ids, attention_mask=mask, labels=torch.tensor([0, 2])).logits, expected)
    placed, change = mixln.apply_placement(stock, STOCK[name])
    assert type(placed) is type(model)
    assert change.keeps_function
    assert torch.equal(scores(placed, ids, attention_mask=mask), expected)
    model.save_pretrained(tmp_path / "classifier")
    again = AutoModelForSequenceClassification.from_pretrained(tmp_path / "classifier")
    assert torch.equal(scores(again, ids, attention_mask=mask), expected)
    assert pickle.loads(pickle.dumps(type(model))) is type(model)


@shared_out(("name", "placement"), CAUSAL_PAIRS, share=2, of=3)
def test_every_parameter_of_a_classifier_learns(name: str, placement: str) -> None:
    model = classifier(name, placement, num_labels=3).train()
    model(input_ids=token_ids(4, 8), labels=torch.tensor([0, 2, 1, 1])).loss.backward()
    # a key's bias moves all scores of a query alike, which softmax does not see
    silent = {one for one, parameter in model.named_parameters() if parameter.grad is None or not parameter.grad.any()}
    assert not {one for one in silent if "k_proj.bias" not in one}


def test_a_placement_without_a_last_norm_warns_that_scores_are_unbounded() -> None:
    for name, placement in itertools.product(CAUSAL, ("none", "pre", "mix")):
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            AutoModelForSequenceClassification.from_config(tiny_architecture_config(name, placement))
        messages = [str(one.message) for one in caught if one.category is PlacementWarning]
        assert [message for message in messages if "unbounded" in message] == messages
        assert len(messages) == (placement == "none"), (name, placement)


def test_a_folder_names_the_class(tmp_path: Path) -> None:
    classifier("gpt2", "lns").save_pretrained(tmp_path)
    assert json.loads((tmp_path / "config.json").read_text())["architectures"] == ["MixLNGPT2ForSequenceClassification"]
