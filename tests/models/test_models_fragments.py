"""Long texts are tokenised in fragments, and no token shows it."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tokenizers import AddedToken, Regex, Tokenizer, models, normalizers, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from mixln.data import DocumentEncoder, load_training_tokenizer, train_tokenizer
from mixln.errors import InputError
from mixln.models import fragments
from mixln.models.fragments import cut, has_safe_places

TOKENIZERS = Path(__file__).resolve().parents[2].parent / "shared" / "tokenizers"

CHARACTERS = [
    *"  \n\t\r.,'!-/\"0123", "\r\n", "  ", "'s", "'ll ", "don't", "the", "The ", "word ", "é", "e\u0301", " \u0301",
    "\u00a0", "\u3000", "\u200b", "\x1c", "\x85", "ﬁ", "\u00b4", "\ufdfa", "漢字", "한", "🎉", "👩\u200d👧", "İ",
    "<|endoftext|>",
]  # fmt: skip

LLAMA_3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+"
    r"|\s+(?!\S)|\s+"
)


def hostile_text(seed: int, count: int = 400) -> str:
    return "".join(random.Random(seed).choices(CHARACTERS, k=count))


def trained(pre_tokenizer: Any, normalizer: Any = None, model: Any = None) -> PreTrainedTokenizerFast:
    backend = Tokenizer(model or models.BPE(unk_token="?"))
    backend.pre_tokenizer, backend.normalizer = pre_tokenizer, normalizer
    kinds: dict[Any, Any] = {models.BPE: trainers.BpeTrainer, models.WordPiece: trainers.WordPieceTrainer}
    trainer = kinds.get(type(backend.model), trainers.UnigramTrainer)
    unknown: dict[str, Any] = {"unk_token": "?"} if trainer is trainers.UnigramTrainer else {}
    texts = [hostile_text(1000 + seed) for seed in range(20)]
    backend.train_from_iterator(
        texts, trainer(vocab_size=600, special_tokens=["?", "</s>"], show_progress=False, **unknown)
    )
    return PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="</s>", unk_token="?")


def of_bytes() -> PreTrainedTokenizerFast:
    return train_tokenizer([hostile_text(seed) for seed in range(1000, 1020)], 500)


def split_by(pattern: str) -> Callable[[], PreTrainedTokenizerFast]:
    return lambda: trained(
        pre_tokenizers.Sequence(
            [pre_tokenizers.Split(Regex(pattern), "isolated"), pre_tokenizers.ByteLevel(False, use_regex=False)]
        ),
        normalizers.NFC(),
    )


SAFE: dict[str, Callable[[], PreTrainedTokenizerFast]] = {
    "trained here": of_bytes,
    "gpt2": lambda: load_training_tokenizer(str(TOKENIZERS / "gpt2")),
    "as Llama 3": split_by(LLAMA_3),
    "as Qwen 2": split_by(LLAMA_3.replace("{1,3}", "")),
    "as SmolLM2": lambda: trained(
        pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(False)])
    ),
    "with a prefix": lambda: trained(pre_tokenizers.ByteLevel(add_prefix_space=True)),
    "as T5": lambda: trained(
        pre_tokenizers.Sequence([pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Metaspace()]),
        normalizers.NFKC(),
        models.Unigram(),
    ),
    "metaspace": lambda: trained(pre_tokenizers.Metaspace(prepend_scheme="first"), normalizers.NFKD()),
    "words": lambda: trained(
        pre_tokenizers.Sequence([pre_tokenizers.Whitespace(), pre_tokenizers.Punctuation()]),
        normalizers.Lowercase(),
        models.WordPiece(unk_token="?"),
    ),
}


@pytest.mark.parametrize("name", SAFE)
def test_a_cut_changes_no_token(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if name == "gpt2" and not TOKENIZERS.is_dir():
        pytest.skip("the tokenizer is not on this machine")
    encoder = DocumentEncoder(SAFE[name]())
    texts = [hostile_text(seed) for seed in range(60)]
    whole = encoder.encode_bare(texts)
    assert all(encoder.fragments(text) == [text] for text in texts)
    monkeypatch.setattr(fragments, "FRAGMENT_CHARACTERS", 1)
    assert sum(len(encoder.fragments(text)) for text in texts) > 1000, "every safe place is tried"
    assert all("".join(encoder.fragments(text)) == text for text in texts)
    for text, before, after in zip(texts, whole, encoder.encode_bare(texts), strict=True):
        assert before.tolist() == after.tolist(), repr(text)


def added_token(token: AddedToken) -> PreTrainedTokenizerFast:
    tokenizer = of_bytes()
    tokenizer.backend_tokenizer.add_tokens([token])
    return tokenizer


UNSAFE: dict[str, Callable[[], PreTrainedTokenizerFast]] = {
    "no words": lambda: trained(None),
    "unknown pattern": split_by(r"\w+ \w+|\s+"),
    "metaspace within words": lambda: trained(pre_tokenizers.Metaspace(split=False)),
    "unknown normalizer": lambda: trained(pre_tokenizers.ByteLevel(False), normalizers.Strip()),
    "digits alone": lambda: trained(pre_tokenizers.Digits()),
    "token with a space": lambda: added_token(AddedToken("the word")),
    "token that takes spaces": lambda: added_token(AddedToken("word", rstrip=True)),
}


@pytest.mark.parametrize("name", UNSAFE)
def test_other_tokenizers_get_every_text_whole(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    tokenizer = UNSAFE[name]()
    assert not has_safe_places(tokenizer.backend_tokenizer.to_str())
    monkeypatch.setattr(fragments, "FRAGMENT_CHARACTERS", 1)
    encoder = DocumentEncoder(tokenizer)
    assert encoder.fragments("the word") == ["the word"]
    monkeypatch.setattr(fragments, "LONGEST_CHARACTERS", 7)
    with pytest.raises(InputError, match=r"8 characters in a row.*this tokenizer needs it whole.*the 7 that fit"):
        encoder.encode_bare(["the", "the word"])


def test_a_text_without_spaces_is_refused_if_it_is_too_long(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fragments, "FRAGMENT_CHARACTERS", 10)
    monkeypatch.setattr(fragments, "LONGEST_CHARACTERS", 50)
    assert cut("some words, and others", is_safe=True) == ["some words,", " and others"]
    assert cut("x" * 50, is_safe=True) == ["x" * 50]
    with pytest.raises(InputError, match=r"55 characters in a row.*a part of it has no spaces.*split this document"):
        cut("words before it " + "x" * 51, is_safe=True)
