"""Opening checkpoints and continuing texts."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from models_tools import PLACEMENTS, logits_of, tiny_model, token_ids
from transformers import BertForMaskedLM, GPT2ForSequenceClassification, PreTrainedModel, T5Model

from mixln import MixLNLlamaForCausalLM
from mixln.data import train_tokenizer
from mixln.errors import InputError
from mixln.models.generate import _Pieces, generate_text
from mixln.models.load import load_causal_lm

TEXT = "the quick brown fox jumps over the lazy dog and runs away"


def save(folder: Path, placement: str) -> Path:
    tokenizer = train_tokenizer([TEXT] * 3, 280)
    model = tiny_model(placement, vocab_size=len(tokenizer), eos_token_id=None)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save(tmp_path_factory.mktemp("saved") / "model", "mix")


@pytest.fixture
def folder(saved: Path, tmp_path: Path) -> Path:
    """A copy that a test may damage."""
    return Path(shutil.copytree(saved, tmp_path / "model"))


@pytest.mark.parametrize("placement", PLACEMENTS)
def test_a_saved_model_opens_with_its_tokenizer(placement: str, tmp_path: Path) -> None:
    model, tokenizer = load_causal_lm(str(save(tmp_path / "model", placement)))
    assert isinstance(model, MixLNLlamaForCausalLM)
    assert not model.training
    assert tokenizer.decode(tokenizer(TEXT).input_ids) == TEXT
    assert logits_of(model, token_ids()).isfinite().all()


@pytest.mark.parametrize("number", [1, 8])
def test_greedy_text_is_the_likeliest_token_so_many_times(number: int, saved: Path) -> None:
    texts = [generate_text(str(saved), "the fox", max_new_tokens=number, temperature=0, seed=seed) for seed in range(3)]
    model, tokenizer = load_causal_lm(str(saved))
    ids = torch.tensor([tokenizer("the fox").input_ids])
    for _ in range(number):
        ids = torch.cat((ids, logits_of(model, ids)[:, -1:].argmax(-1)), dim=1)
    assert texts == [tokenizer.decode(ids[0], skip_special_tokens=True)] * 3


def test_the_seed_decides_the_text(saved: Path) -> None:
    def text(seed: int) -> str:
        return generate_text(str(saved), "the fox", max_new_tokens=12, temperature=1.5, top_p=1, seed=seed)

    first = text(1)
    torch.manual_seed(99)
    assert text(1) == first
    assert first.startswith("the fox")
    assert len({first, text(2), text(3)}) == 3


def test_an_empty_text_begins_at_the_end_of_text_token(saved: Path) -> None:
    text = generate_text(str(saved), "", max_new_tokens=5, temperature=0)
    assert text
    assert "<|endoftext|>" not in text


@pytest.mark.parametrize("seed", range(4))
def test_the_pieces_of_a_streamed_text_are_the_text(seed: int, saved: Path) -> None:
    pieces: list[str] = []
    text = generate_text(str(saved), "the fox", max_new_tokens=30, temperature=1.5, seed=seed, say=pieces.append)
    assert "".join(pieces) == text


def test_words_come_as_they_are_generated() -> None:
    text = f"{TEXT},\n{TEXT} -- 🦊. The end"
    tokenizer, pieces = train_tokenizer([text] * 3, 400), list[str]()
    streamer = _Pieces(tokenizer, pieces.append)
    for token in tokenizer(text).input_ids:
        streamer.put(torch.tensor([token]))
    assert "".join(pieces).startswith(f"{TEXT},\n{TEXT} -- ")
    streamer.end()
    assert "".join(pieces) == text
    assert len(pieces) > 10


def test_a_text_ends_where_the_context_is_full(saved: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO", "mixln")
    model, tokenizer = load_causal_lm(str(saved))
    context, length = model.config.max_position_embeddings, len(tokenizer("the fox").input_ids)
    greedy: dict[str, Any] = {"temperature": 0}
    text = generate_text(str(saved), "the fox", max_new_tokens=context * 2, **greedy)
    assert f"after {context - length} new tokens, where the model's context of {context} tokens is full" in caplog.text
    caplog.clear()
    assert generate_text(str(saved), "the fox", max_new_tokens=context - length, **greedy) == text
    assert "full" not in caplog.text
    # the last prompt that fits, and the first that does not
    ids = tokenizer("the " * context).input_ids
    assert generate_text(str(saved), str(tokenizer.decode(ids[: context - 1])), max_new_tokens=5, **greedy)
    with pytest.raises(InputError, match=f"the text has {context} tokens, and the model's context of {context}"):
        generate_text(str(saved), str(tokenizer.decode(ids[:context])), max_new_tokens=5, **greedy)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"max_new_tokens": 0}, "`max_new_tokens` must be at least 1, not 0"),
        ({"max_new_tokens": -5}, "max_new_tokens"),
        ({"temperature": -0.5}, "`temperature` must not be negative"),
        ({"temperature": float("nan")}, "temperature"),
        ({"temperature": float("inf")}, "temperature"),
        ({"top_p": 0}, r"`top_p` must be in \(0, 1\]"),
        ({"top_p": 1.1}, "top_p"),
        ({"top_p": float("nan")}, "top_p"),
    ],
)
def test_numbers_out_of_range_are_input_errors(options: dict[str, Any], message: str, saved: Path) -> None:
    with pytest.raises(InputError, match=message):
        generate_text(str(saved), "the", **options)


def test_what_is_no_checkpoint_is_an_input_error(folder: Path) -> None:
    with pytest.raises(InputError, match="there is no folder"):
        load_causal_lm(str(folder / "nowhere"))
    with pytest.raises(InputError, match="is a file: give the folder"):
        load_causal_lm(str(folder / "config.json"))
    (folder / "config.json").unlink()
    with pytest.raises(InputError, match=r"has no config.json"):
        load_causal_lm(str(folder))


@pytest.mark.parametrize("kind", [BertForMaskedLM, GPT2ForSequenceClassification, T5Model])
def test_a_model_that_predicts_no_next_token_is_an_input_error(
    kind: type[PreTrainedModel], folder: Path, tmp_path: Path
) -> None:
    # its weights may well be those of a causal model, whose text would be noise
    sizes: Any = {"vocab_size": 300, "hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2}
    assert kind.config_class is not None
    kind(kind.config_class(**sizes)).save_pretrained(tmp_path / "other")
    for file in folder.glob("tokenizer*"):
        shutil.copy(file, tmp_path / "other")
    with pytest.raises(InputError, match=f"is a {kind.__name__}, which does not predict the next token"):
        load_causal_lm(str(tmp_path / "other"))


@pytest.mark.parametrize("keep", [0, 100, -1000])
def test_damaged_weights_are_an_input_error(keep: int, folder: Path) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(InputError, match=r"model\.safetensors is damaged or cut off"):
        load_causal_lm(str(folder))


def test_missing_weights_are_an_input_error(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    with pytest.raises(InputError, match="cannot be opened"):
        load_causal_lm(str(folder))


def test_a_missing_tokenizer_is_an_input_error(folder: Path) -> None:
    for path in folder.glob("tokenizer*"):
        path.unlink()
    with pytest.raises(InputError, match=r"cannot load tokenizer .* Save the model's beside it"):
        load_causal_lm(str(folder))


def test_a_damaged_tokenizer_is_an_input_error(folder: Path) -> None:
    (folder / "tokenizer.json").write_text('{"version": "1.0", "model": {"type": "Nothing"}}')
    with pytest.raises(InputError, match=r"cannot load tokenizer .* Save the model's beside it"):
        load_causal_lm(str(folder))


CONFIG_CHANGES: dict[str, tuple[dict[str, Any], str]] = {
    "another placement": ({"placement": "post"}, "says placement 'post', but was written for another"),
    "unknown placement": ({"placement": "prre"}, "Did you mean 'pre'"),
    "placement is a number": ({"placement": 3}, "'placement' expected str, got int"),
    "wrong depths": ({"placement_depths": [4, 3, 2, 1]}, r"the depths \[4, 3, 2, 1\] are not"),
    "heads that do not divide": ({"num_attention_heads": 5, "num_key_value_heads": 5}, "not a multiple"),
    "no heads": ({"num_attention_heads": 0}, "ZeroDivisionError"),
    "a negative size": ({"intermediate_size": -48}, "negative dimension"),
    "another width": ({"hidden_size": 64}, "mismatch"),
    "another model type": ({"model_type": "nothing_like_it"}, "nothing_like_it"),
    "no language model": ({"model_type": "vit"}, "."),
}


@pytest.mark.parametrize("case", CONFIG_CHANGES)
def test_a_config_that_does_not_fit_is_an_input_error(case: str, folder: Path) -> None:
    changes, message = CONFIG_CHANGES[case]
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    with pytest.raises(InputError, match=r"cannot be opened as a causal language model: .*" + message):
        load_causal_lm(str(folder))


@pytest.mark.parametrize("text", ["", "{", "[]", "3", '"mix"'])
def test_a_config_that_is_no_config_is_an_input_error(text: str, folder: Path) -> None:
    (folder / "config.json").write_text(text)
    with pytest.raises(InputError, match="cannot be opened"):
        load_causal_lm(str(folder))


def test_code_of_a_checkpoint_is_not_run(folder: Path, tmp_path: Path) -> None:
    (folder / "evil.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\nclass Config: ...\nclass Model: ...\n")
    path = folder / "config.json"
    changes = {"model_type": "evil", "auto_map": {"AutoConfig": "evil.Config", "AutoModelForCausalLM": "evil.Model"}}
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    with pytest.raises(InputError, match="cannot be opened"):
        load_causal_lm(str(folder))
    assert not (tmp_path / "ran").exists()
