"""A classifier that pads with a token of its own sees the end of a text, whatever pads in the model's folder."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from architecture_tools import CAUSAL, CAUSAL_PAIRS, tiny_architecture
from cover import shared_out
from tiny import save_tiny_llama
from transformers import AutoModelForSequenceClassification, PreTrainedTokenizerFast

from mixln.data import PreparedData
from mixln.data.tokenizer import wrap_tokenizer
from mixln.errors import InputError
from mixln.models.classifier import PAD_TOKEN, give_padding_token, load_classifier

pytestmark = pytest.mark.filterwarnings("ignore::mixln.placement.PlacementWarning")


@pytest.fixture
def tokenizer(data: PreparedData) -> PreTrainedTokenizerFast:
    """One whose end token begins and pads too, which is to be changed."""
    made = wrap_tokenizer(data.tokenizer.backend_tokenizer)
    assert made.pad_token == made.eos_token == made.bos_token
    return made


def scores(model: Any, ids: list[list[int]], pad: int) -> list[float]:
    length = max(map(len, ids))
    rows = torch.tensor([[*row, *[pad] * (length - len(row))] for row in ids])
    mask = torch.tensor([[1] * len(row) + [0] * (length - len(row)) for row in ids])
    with torch.no_grad():
        return model.eval()(input_ids=rows, attention_mask=mask).logits[:, 0].tolist()


def test_where_the_end_token_pads_it_is_not_read(tokenizer: PreTrainedTokenizerFast, tmp_path: Path) -> None:
    """What TRL does where a tokenizer has no other padding token; and what a token of its own changes."""
    folder = save_tiny_llama(tmp_path, tokenizer, 2)
    text = tokenizer("A class is")["input_ids"]
    end = tokenizer.eos_token_id
    assert isinstance(end, int)
    stock: Any = AutoModelForSequenceClassification.from_pretrained(folder, num_labels=1, pad_token_id=end)
    # with the end token or without, the token before it is read
    assert scores(stock, [[*text, end]], end) == pytest.approx(scores(stock, [text], end))
    model, _ = load_classifier(str(folder))
    assert give_padding_token(model, tokenizer)
    pad = tokenizer.pad_token_id
    assert isinstance(pad, int)
    with_end, without = scores(model, [[*text, end]], pad), scores(model, [text], pad)
    assert with_end != pytest.approx(without)
    with torch.no_grad():
        hidden = model.base_model(input_ids=torch.tensor([[*text, end]])).last_hidden_state[0, -1]
        assert with_end[0] == pytest.approx((hidden @ model.score.weight[0]).item(), rel=1e-4)  # pyright: ignore[reportAttributeAccessIssue, reportOperatorIssue, reportIndexIssue]


@shared_out(("name", "placement"), CAUSAL_PAIRS, share=0, of=6)
def test_a_new_token_changes_no_score_and_is_saved(
    name: str, placement: str, tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    tied = name in ("qwen2", "gpt2", "llama")
    made = tiny_architecture(name, placement, vocab_size=len(tokenizer), tie_word_embeddings=tied)
    made.save_pretrained(tmp_path / "language_model")
    model, new = load_classifier(str(tmp_path / "language_model"), seed=3)
    assert new == ("score.weight",)
    ids = torch.randint(1, len(tokenizer), (5,)).tolist()
    before = scores(model, [ids], 0)
    rows = len(tokenizer)
    assert give_padding_token(model, tokenizer)
    assert tokenizer.pad_token == PAD_TOKEN
    assert tokenizer.pad_token_id == rows == model.config.pad_token_id
    embedding: Any = model.get_input_embeddings()
    assert (embedding.num_embeddings, embedding.padding_idx) == (rows + 1, rows)
    assert scores(model, [ids, ids[:2]], rows)[0] == pytest.approx(before[0], rel=1e-4, abs=1e-6)
    model.save_pretrained(tmp_path / "classifier")
    again, none_new = load_classifier(str(tmp_path / "classifier"))
    assert none_new == ()
    assert scores(again, [ids, ids[:2]], rows)[0] == pytest.approx(before[0], rel=1e-4, abs=1e-6)
    assert again.config.vocab_size == rows + 1
    assert again.config.tie_word_embeddings == tied


def test_the_end_token_learns_too(tokenizer: PreTrainedTokenizerFast, tmp_path: Path) -> None:
    """An embedding has no gradient at its padding token, which was the end token."""
    end = tokenizer.eos_token_id
    folder = save_tiny_llama(tmp_path, tokenizer, 2, pad_token_id=end)
    model, _ = load_classifier(str(folder))
    give_padding_token(model, tokenizer)
    model.train()(input_ids=torch.tensor([[5, 6, end]])).logits.sum().backward()
    gradient: Any = model.get_input_embeddings().weight.grad
    assert gradient[end].any()
    assert not gradient[tokenizer.pad_token_id].any()


def test_a_token_that_is_there_is_kept_and_spare_rows_are_used(
    tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    folder = save_tiny_llama(tmp_path, tokenizer, 1, vocab_size=len(tokenizer) + 7)
    model, _ = load_classifier(str(folder))
    assert give_padding_token(model, tokenizer)
    embedding: Any = model.get_input_embeddings()
    assert embedding.num_embeddings == model.config.vocab_size == len(tokenizer) + 6
    assert not give_padding_token(model, tokenizer), "it has one now"
    # a name that the tokenizer has already is not taken
    other = wrap_tokenizer(tokenizer.backend_tokenizer)
    assert PAD_TOKEN in other.get_vocab()
    give_padding_token(model, other)
    assert other.pad_token == f"<{PAD_TOKEN}>"


@pytest.mark.parametrize("name", CAUSAL)
def test_another_seed_draws_another_head_and_nothing_else(name: str, tmp_path: Path) -> None:
    tiny_architecture(name, "mix(alpha=0.5)").save_pretrained(tmp_path)
    torch.manual_seed(5)
    state = torch.get_rng_state()
    one, other, again = (load_classifier(str(tmp_path), seed=seed)[0].state_dict() for seed in (0, 1, 0))
    assert {key for key in one if not torch.equal(one[key], other[key])} == {"score.weight"}
    assert all(torch.equal(one[key], again[key]) for key in one)
    assert torch.equal(torch.get_rng_state(), state)


def test_what_is_no_language_model_is_refused(tokenizer: PreTrainedTokenizerFast, tmp_path: Path) -> None:
    from transformers import BertConfig, BertForMaskedLM, T5Config, T5ForConditionalGeneration, ViTConfig, ViTModel

    small: dict[str, Any] = {
        "hidden_size": 16,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "intermediate_size": 16,
    }
    of_t5: dict[str, Any] = {"d_model": 16, "d_kv": 8, "d_ff": 16, "num_layers": 1, "num_heads": 2}
    models: dict[str, Any] = {
        "bert": BertForMaskedLM(BertConfig(vocab_size=40, **small)),
        "vit": ViTModel(ViTConfig(image_size=8, patch_size=4, **small)),
        "t5": T5ForConditionalGeneration(T5Config(vocab_size=40, **of_t5)),
    }
    for name, model in models.items():
        model.save_pretrained(tmp_path / name)
        with pytest.raises(InputError, match="give a causal language model"):
            load_classifier(str(tmp_path / name))
    folder = save_tiny_llama(tmp_path / "llama", tokenizer, 1)
    model: Any = AutoModelForSequenceClassification.from_pretrained(folder, num_labels=3)
    model.save_pretrained(tmp_path / "three")
    with pytest.raises(InputError, match="a classifier with 3 scores of a text, and 1 is wanted"):
        load_classifier(str(tmp_path / "three"))
