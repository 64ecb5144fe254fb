"""How text becomes tokens: as each tokenizer itself begins and ends it."""

from __future__ import annotations

import pickle
from collections.abc import Callable

import pytest
import torch
from models_tools import tiny_model
from tiny import with_begin_token
from tokenizers.processors import TemplateProcessing
from transformers import ByT5Tokenizer, CanineTokenizer, PreTrainedTokenizerBase, PreTrainedTokenizerFast

from mixln.data import train_tokenizer
from mixln.errors import InputError
from mixln.models.encoding import DocumentEncoder, PromptEncoder, padding_token, require_embedded

TEXTS = ["the quick brown fox", "a", "  it jumps\nover <s> the lazy dog <|endoftext|>"]


def plain() -> PreTrainedTokenizerFast:
    return train_tokenizer(["the quick brown fox jumps over the lazy dog"] * 3, 280)


def framed(template: str) -> PreTrainedTokenizerFast:
    tokenizer = with_begin_token(plain())
    ids = {"<s>": tokenizer.convert_tokens_to_ids("<s>"), "<|endoftext|>": 0}
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single=template, special_tokens=[(name, number) for name, number in ids.items() if isinstance(number, int)]
    )
    return tokenizer


def by_configuration() -> PreTrainedTokenizerFast:
    """Without a template of its own: `add_bos_token` in tokenizer_config.json makes one."""
    tokenizer = with_begin_token(plain())
    tokenizer.add_bos_token = True
    return tokenizer


TOKENIZERS: dict[str, tuple[Callable[[], PreTrainedTokenizerBase], int, int]] = {
    "nothing": (plain, 0, 0),
    "begin": (lambda: with_begin_token(plain()), 1, 0),
    "end": (lambda: framed("$A <|endoftext|>"), 0, 1),
    "both": (lambda: framed("<s> $A <|endoftext|>"), 1, 1),
    "two": (lambda: framed("<|endoftext|> <s> $A"), 2, 0),
    "add_bos_token": (by_configuration, 1, 0),
    "no backend, end": (ByT5Tokenizer, 0, 1),
    "no backend, both": (CanineTokenizer, 1, 1),
}


@pytest.mark.parametrize("name", TOKENIZERS)
def test_documents_begin_as_the_tokenizer_begins_them(name: str) -> None:
    build, begin, end = TOKENIZERS[name]
    tokenizer = build()
    encoder = DocumentEncoder(tokenizer)
    assert (len(encoder.begin), len(encoder.end)) == (begin, end)
    for text, ids in zip(TEXTS, encoder.encode(TEXTS), strict=True):
        whole = tokenizer(text, split_special_tokens=True)["input_ids"]
        assert ids.tolist() == whole[: len(whole) - end]
    assert [len(ids) for ids in encoder.encode(["", "x"])] == [0, begin + 1]


def test_a_pickled_encoder_is_the_same() -> None:
    encoder = DocumentEncoder(with_begin_token(plain()))
    copy = pickle.loads(pickle.dumps(encoder))
    assert [ids.tolist() for ids in copy.encode(TEXTS)] == [ids.tolist() for ids in encoder.encode(TEXTS)]
    assert copy.begin == encoder.begin


def test_a_tokenizer_that_changes_text_beside_special_tokens_is_refused() -> None:
    class Shouting(ByT5Tokenizer):
        def build_inputs_with_special_tokens(
            self, token_ids_0: list[int], token_ids_1: list[int] | None = None
        ) -> list[int]:
            return [token + 1 for token in (*token_ids_0, *(token_ids_1 or ()))]

    with pytest.raises(InputError, match="documents cannot be tokenised with it"):
        DocumentEncoder(Shouting())


def test_a_prompt_begins_once_and_does_not_end() -> None:
    tokenizer = framed("<s> $A <|endoftext|>")
    begin = tokenizer.convert_tokens_to_ids("<s>")
    encode = PromptEncoder(tokenizer).encode
    fox = tokenizer("the fox", add_special_tokens=False)["input_ids"]
    assert encode("the fox") == [begin, *fox]
    # as a chat template writes it
    assert encode("<s>the fox") == [begin, *fox]
    assert encode("") == [begin]
    assert PromptEncoder(plain()).encode("") == [0]


def test_a_token_without_an_embedding_is_named() -> None:
    tokenizer = with_begin_token(plain())
    model = tiny_model("pre", vocab_size=len(tokenizer) - 1)
    require_embedded([0, len(tokenizer) - 2], model, tokenizer)
    sizes = rf"embeddings for {len(tokenizer) - 1} tokens, and its tokenizer {len(tokenizer)} tokens"
    with pytest.raises(InputError, match=rf"token {len(tokenizer) - 1} \('<s>'\) is in use, .*{sizes}"):
        require_embedded(torch.arange(len(tokenizer)).tolist(), model, tokenizer)
    tokenizer.pad_token = "<s>"
    assert padding_token(model, tokenizer) == tokenizer.eos_token_id
