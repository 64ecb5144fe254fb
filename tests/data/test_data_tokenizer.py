from __future__ import annotations

import json
import pickle
import random
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from mixln.data import DocumentEncoder, load_training_tokenizer, open_corpus, train_tokenizer
from mixln.errors import InputError

TEXTS = [
    "hello world, hello words; it 's  a  test ! n't , .",
    "\ttabs\n\n  and spaces \r\n \x00\x01\x1f\x7f",
    "emoji 🎉👩‍👩‍👧 and é e\u0301 ﬁ \ufeff 漢字 עברית \U0010ffff",
    "<|endoftext|> in the text <|endoftext|>",
    " ",
]


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerFast:
    return train_tokenizer(TEXTS, 300)


def test_any_text_survives(tokenizer: PreTrainedTokenizerFast) -> None:
    generator = random.Random(0)
    characters = [chr(c) for c in range(0x3000) if not 0xD800 <= c < 0xE000] + ["🎉", "\U0010ffff"]
    texts = TEXTS + ["".join(generator.choices(characters, k=200)) for _ in range(50)]
    for text in texts:
        assert tokenizer.decode(tokenizer(text)["input_ids"]) == text
        (ids,) = DocumentEncoder(tokenizer).encode([text])
        assert tokenizer.decode(ids) == text


def test_real_text_survives(shared_data: Path) -> None:
    corpus = open_corpus(str(shared_data / "c4-sample.jsonl.gz"))
    documents = list(corpus.documents())
    assert len(documents) == 300
    tokenizer = train_tokenizer(documents, 1000)
    assert len(tokenizer) == 1000
    for document, ids in zip(documents, DocumentEncoder(tokenizer).encode(documents), strict=True):
        assert tokenizer.decode(ids) == document


def test_special_tokens_and_size(tokenizer: PreTrainedTokenizerFast) -> None:
    assert tokenizer.eos_token == tokenizer.bos_token == tokenizer.pad_token == "<|endoftext|>"
    assert tokenizer.eos_token_id == 0
    assert len(tokenizer) == 300
    assert len(train_tokenizer(["aa"], 1000)) < 300  # too small a text to fill it
    with pytest.raises(InputError, match=r"vocab_size 256 is too small.*257"):
        train_tokenizer(TEXTS, 256)
    assert len(train_tokenizer(TEXTS, 257)) == 257


@pytest.mark.slow
def test_training_is_deterministic_between_processes(shared_data: Path) -> None:
    program = (
        "import sys; from mixln.data import open_corpus, train_tokenizer;"
        "t = train_tokenizer(open_corpus(sys.argv[1]).documents(), 600);"
        "sys.stdout.buffer.write(t.backend_tokenizer.to_str().encode())"
    )
    source = str(shared_data / "c4-sample.jsonl.gz")
    here = train_tokenizer(open_corpus(source).documents(), 600).backend_tokenizer.to_str()
    there = subprocess.run([sys.executable, "-c", program, source], check=True, capture_output=True).stdout.decode()
    assert here == there


def test_an_error_of_the_documents_passes_through_the_trainer() -> None:
    def documents() -> Iterator[str]:
        yield "one"
        raise InputError("lost")

    with pytest.raises(InputError, match=r"^lost$"):
        train_tokenizer(documents(), 300)


def test_special_tokens_spelt_in_the_text_stay_text(tokenizer: PreTrainedTokenizerFast) -> None:
    encoder = DocumentEncoder(tokenizer)
    (ids,) = encoder.encode(["a <|endoftext|> b"])
    assert encoder.eos_token_id not in ids
    assert tokenizer.eos_token_id in tokenizer("a <|endoftext|> b")["input_ids"], "the tokenizer itself is unchanged"


def test_truncation_and_padding_settings_of_a_tokenizer_do_not_apply(tokenizer: PreTrainedTokenizerFast) -> None:
    tokenizer.backend_tokenizer.enable_truncation(3)
    tokenizer.backend_tokenizer.enable_padding(length=10)
    try:
        short, long = DocumentEncoder(tokenizer).encode(["z", "z " * 100])
        assert len(short) == 1
        assert len(long) > 100
    finally:
        tokenizer.backend_tokenizer.no_truncation()
        tokenizer.backend_tokenizer.no_padding()


def test_characters_covered_by_tokens(tokenizer: PreTrainedTokenizerFast) -> None:
    encoder = DocumentEncoder(tokenizer)
    text = "hello world zq"
    (ids,) = encoder.encode([text])
    for count in range(len(ids) + 2):
        assert encoder.decoded_characters(ids[:count]) == len(tokenizer.decode(ids[:count]))
    assert encoder.decoded_characters(ids) == len(text)


def test_an_encoder_survives_pickling_with_its_settings(tokenizer: PreTrainedTokenizerFast) -> None:
    encoder = DocumentEncoder(tokenizer)
    copy = pickle.loads(pickle.dumps(encoder))
    text = "a <|endoftext|> b"
    assert copy.encode([text])[0].tolist() == encoder.encode([text])[0].tolist()
    assert encoder.eos_token_id not in copy.encode([text])[0]
    assert (copy.eos_token_id, copy.vocab_size) == (encoder.eos_token_id, encoder.vocab_size)


def test_a_saved_tokenizer_loads(tokenizer: PreTrainedTokenizerFast, tmp_path: Path) -> None:
    tokenizer.save_pretrained(tmp_path)
    for loaded in (load_training_tokenizer(str(tmp_path)), AutoTokenizer.from_pretrained(tmp_path)):
        assert loaded.backend_tokenizer.to_str() == tokenizer.backend_tokenizer.to_str()
        assert loaded.eos_token_id == loaded.pad_token_id == 0
        assert [loaded.decode(loaded(text)["input_ids"]) for text in TEXTS] == TEXTS


def test_gpt2s_two_files_load(shared_data: Path) -> None:
    tokenizer = load_training_tokenizer(str(shared_data.parent / "tokenizers" / "gpt2"))
    assert len(tokenizer) == 50257
    assert tokenizer.eos_token_id == 50256
    assert tokenizer("Hello world")["input_ids"] == [15496, 995]


def test_what_cannot_be_loaded_is_an_input_error(tokenizer: PreTrainedTokenizerFast, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"cannot load tokenizer .*gone"):
        load_training_tokenizer(str(tmp_path / "gone"))
    tokenizer.save_pretrained(tmp_path)
    original = (tmp_path / "tokenizer.json").read_text(encoding="utf-8")
    damaged = json.loads(original)
    damaged["model"]["type"] = "Nonsense"
    for content in (original[:100], "{}", json.dumps(damaged)):
        (tmp_path / "tokenizer.json").write_text(content, encoding="utf-8")
        with pytest.raises(InputError, match="cannot load tokenizer") as raised:
            load_training_tokenizer(str(tmp_path))
        assert "\n" not in str(raised.value)


def test_a_tokenizer_without_end_of_text_is_an_input_error(tokenizer: PreTrainedTokenizerFast, tmp_path: Path) -> None:
    PreTrainedTokenizerFast(tokenizer_object=tokenizer.backend_tokenizer).save_pretrained(tmp_path)
    with pytest.raises(InputError, match=r'no end-of-text token.*"eos_token" in its tokenizer_config.json'):
        load_training_tokenizer(str(tmp_path))
