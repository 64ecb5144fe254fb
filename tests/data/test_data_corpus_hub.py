from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import datasets
import pytest
from datasets.exceptions import DatasetNotFoundError

from mixln.data import DataConfig, open_corpus, prepare_data
from mixln.errors import InputError


@pytest.fixture(autouse=True)
def hub_that_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mixln.hub._reason_to_stay_offline", lambda: None)


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("c4", ("allenai/c4", "en", "train", None)),
        ("hf:", ("allenai/c4", "en", "train", None)),
        ("c4:de:validation", ("allenai/c4", "de", "validation", None)),
        ("c4::validation", ("allenai/c4", "en", "validation", None)),
        ("hf:org/name", ("org/name", None, "train", None)),
        ("hf:org/name@abc:small:test", ("org/name", "small", "test", "abc")),
    ],
)
def test_a_source_names_dataset_config_split_and_revision(
    source: str, expected: tuple[str, str | None, str, str | None], monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[object] = []

    def load(name: str, config: str | None, *, split: str, revision: str | None, streaming: bool) -> object:
        assert streaming
        calls.append((name, config, split, revision))
        return [{"text": "one"}, {"text": None}, {"text": "two"}]

    monkeypatch.setattr(datasets, "load_dataset", load)
    corpus = open_corpus(source)
    fingerprint = corpus.fingerprint()
    assert not calls, "a fingerprint needs no network"
    assert list(corpus.documents()) == ["one", "two"]
    assert calls == [expected]
    assert corpus.left_out.skipped == {"empty document (null)": 1}
    assert corpus.unbounded
    assert open_corpus(corpus.name).fingerprint() == fingerprint, "the name printed is one that can be given"
    assert open_corpus(source).fingerprint() == fingerprint != open_corpus("hf:org/other").fingerprint()


def test_two_names_of_one_dataset_have_one_fingerprint() -> None:
    assert open_corpus("c4").fingerprint() == open_corpus("hf:allenai/c4:en:train").fingerprint()


@pytest.mark.parametrize(
    "error",
    [
        ConnectionError("Couldn't reach 'x' on the Hub"),
        DatasetNotFoundError("Dataset 'x' doesn't exist\non the Hub"),
        ValueError("BuilderConfig 'x' not found"),
        RuntimeError("Dataset scripts are no longer supported"),
        TimeoutError(),
    ],
)
@pytest.mark.parametrize("midway", [False, True])
def test_what_the_hub_raises_becomes_one_line(error: Exception, midway: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    def load(*_: object, **__: object) -> Iterator[dict[str, str]]:
        if not midway:
            raise error

        def rows() -> Iterator[dict[str, str]]:
            yield {"text": "one"}
            raise error

        return rows()

    monkeypatch.setattr(datasets, "load_dataset", load)
    with pytest.raises(InputError, match=f"dataset x.*stopped after {int(midway)} rows") as raised:
        list(open_corpus("hf:x").documents())
    assert "\n" not in str(raised.value)


def test_a_dataset_without_the_column_is_not_read_to_its_end(monkeypatch: pytest.MonkeyPatch) -> None:
    def load(*_: object, **__: object) -> Iterator[dict[str, str]]:
        while True:
            yield {"body": "x", "id": "1"}

    monkeypatch.setattr(datasets, "load_dataset", load)
    with pytest.raises(InputError, match="one of: body, id"):
        list(open_corpus("hf:x").documents())


def test_too_many_colons() -> None:
    with pytest.raises(InputError, match="too many colons"):
        open_corpus("hf:a:b:c:d")


def test_an_endless_stream_is_prepared_up_to_max_tokens(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def load(*_: object, **__: object) -> Iterator[dict[str, str]]:
        number = 0
        while True:
            number += 1
            yield {"text": f"document number {number} of very many"}

    monkeypatch.setattr(datasets, "load_dataset", load)
    with pytest.raises(InputError, match="set max_tokens"):
        prepare_data(DataConfig("hf:x"), tmp_path)
    config = DataConfig("hf:x", max_tokens=20_000, vocab_size=300, tokenizer_training_characters=10_000)
    data = prepare_data(config, tmp_path)
    assert data.statistics.train.tokens == len(data.train.store) == 20_000
    assert 1000 <= data.statistics.validation.tokens < 3000


def test_a_failing_stream_is_an_input_error_even_through_the_tokenizer_trainer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    passes = 0

    def load(*_: object, **__: object) -> Iterator[dict[str, str]]:
        nonlocal passes
        passes += 1
        for number in range(500):
            yield {"text": f"document number {number}"}
        raise ConnectionError("lost")

    monkeypatch.setattr(datasets, "load_dataset", load)
    with pytest.raises(InputError, match="stopped after 500 rows"):
        prepare_data(DataConfig("hf:x", max_tokens=1_000_000), tmp_path)
    assert passes == 2  # the split, then the tokenizer
