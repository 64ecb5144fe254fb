from __future__ import annotations

import errno
import json
import random
import subprocess
import sys
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import NoReturn

import numpy as np
import pytest

from mixln import manifest
from mixln.data import (
    DataConfig,
    PreparedData,
    TokenStore,
    cache,
    load_training_tokenizer,
    open_corpus,
    prepare_data,
    train_tokenizer,
)
from mixln.data.splitting import digest
from mixln.data.tokenizer import tokenizer_hash
from mixln.errors import InputError
from mixln.version import __version__

WORDS = ["the", "quick", "brown", "fox", "jumps", "over", "a", "lazy", "dog", "and", "then", "some", "more"]
WriteJsonl = Callable[..., Path]


def make_documents(count: int, seed: int = 0) -> list[str]:
    generator = random.Random(seed)
    return [" ".join(generator.choices(WORDS, k=generator.randint(3, 60))) + f" {i}" for i in range(count)]


def decode(data: PreparedData, store: TokenStore) -> list[str]:
    documents = np.split(np.asarray(store.tokens), store.document_ends[:-1])
    assert all(document[-1] == data.tokenizer.eos_token_id for document in documents)
    return [str(data.tokenizer.decode(document[:-1])) for document in documents]


@pytest.fixture
def config(write_jsonl: WriteJsonl) -> DataConfig:
    return DataConfig(str(write_jsonl(make_documents(200))), vocab_size=300, sequence_length=16)


def test_documents_come_back_from_the_two_splits(config: DataConfig, tmp_path: Path) -> None:
    lines: list[str] = []
    data = prepare_data(config, tmp_path / "cache", lines.append)
    train, validation = decode(data, data.train.store), decode(data, data.validation.store)
    assert sorted(train + validation) == sorted(make_documents(200))
    assert not set(train) & set(validation)
    assert 2 <= len(validation) <= 30
    statistics = data.statistics
    assert statistics.train.documents == len(train)
    assert statistics.train.characters == sum(map(len, train))
    assert statistics.train.tokens == len(data.train.store)
    assert statistics.validation.tokens == len(data.validation.store)
    assert data.validation.num_predicted_tokens == statistics.validation.tokens - statistics.validation.documents
    assert not data.train.keep_partial
    assert data.validation.keep_partial
    assert len(data.tokenizer) == 300
    assert any("training a tokenizer" in line for line in lines)


def test_a_second_call_reads_tokens_from_the_cache(
    config: DataConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = prepare_data(config, tmp_path / "cache")

    def refuse(*_: object) -> NoReturn:
        raise AssertionError("tokenised again")

    monkeypatch.setattr("mixln.data.pieces.tokenized_batches", refuse)
    # Rows are cut from the same tokens, whatever their length.
    for same in (config, replace(config, sequence_length=7, cross_documents=True)):
        again = prepare_data(same, tmp_path / "cache")
        assert again.fingerprint == first.fingerprint
        assert again.statistics == first.statistics
        assert again.tokenizer.backend_tokenizer.to_str() == first.tokenizer.backend_tokenizer.to_str()
        assert again.train.sequence_length == same.sequence_length
        assert again.train.cross_documents == again.validation.cross_documents == same.cross_documents
    for other in (
        replace(config, vocab_size=301),
        replace(config, max_tokens=1000),
        replace(config, max_validation_tokens=50),
        replace(config, validation_fraction=0.3),
        replace(config, tokenizer_training_characters=1000),
    ):
        with pytest.raises(AssertionError, match="tokenised again"):
            prepare_data(other, tmp_path / "cache")


def test_changed_content_is_prepared_anew(config: DataConfig, tmp_path: Path) -> None:
    first = prepare_data(config, tmp_path / "cache")
    with Path(config.corpus).open("a", encoding="utf-8") as file:
        file.write('{"text": "one more"}\n')
    second = prepare_data(config, tmp_path / "cache")
    assert second.fingerprint != first.fingerprint
    assert second.statistics.train.documents + second.statistics.validation.documents == 201


def test_tokens_stop_exactly_at_the_limits(config: DataConfig, tmp_path: Path) -> None:
    config = replace(config, max_tokens=1000, max_validation_tokens=41, validation_fraction=0.2)
    data = prepare_data(config, tmp_path / "cache")
    assert len(data.train.store) == data.statistics.train.tokens == 1000
    assert len(data.validation.store) == data.statistics.validation.tokens == 41
    for store, statistics in (
        (data.train.store, data.statistics.train),
        (data.validation.store, data.statistics.validation),
    ):
        text = str(data.tokenizer.decode(np.asarray(store.tokens)))
        assert len(text.replace("<|endoftext|>", "")) == statistics.characters


def test_validation_gets_its_share_although_the_first_documents_fill_the_training_split(
    write_jsonl: WriteJsonl, tmp_path: Path
) -> None:
    documents = sorted(make_documents(200), key=digest, reverse=True)  # validation documents come last
    config = DataConfig(str(write_jsonl(documents)), vocab_size=300, sequence_length=16, max_tokens=500)
    data = prepare_data(config, tmp_path / "cache")
    assert len(data.train.store) == 500
    assert data.statistics.validation.tokens >= 25


@pytest.mark.parametrize("count", [2, 3, 5])
def test_small_corpora_have_both_splits(count: int, write_jsonl: WriteJsonl, tmp_path: Path) -> None:
    documents = [f"{i} " + "some words of a document " * 20 for i in range(count)]
    path = write_jsonl(documents * 2)
    for fraction in (0.001, 0.5, 0.999):
        config = DataConfig(str(path), validation_fraction=fraction, vocab_size=300, sequence_length=8)
        data = prepare_data(config, tmp_path / "cache")
        train, validation = decode(data, data.train.store), decode(data, data.validation.store)
        assert set(train) | set(validation) == set(documents)
        assert not set(train) & set(validation)
        assert len(train) + len(validation) == 2 * count, "duplicates within a split stay"


def test_a_single_document_cannot_be_split(write_jsonl: WriteJsonl, tmp_path: Path) -> None:
    path = write_jsonl(["the same"] * 3)
    with pytest.raises(InputError, match=r"single distinct document.*validation_corpus"):
        prepare_data(DataConfig(str(path)), tmp_path / "cache")


def test_training_documents_that_are_validation_documents_are_dropped(write_jsonl: WriteJsonl, tmp_path: Path) -> None:
    documents = make_documents(60)
    train_path = write_jsonl(documents + documents[:5], "train.jsonl")
    valid_path = write_jsonl([*documents[3:9], "elsewhere"], "valid.jsonl")
    config = DataConfig(str(train_path), str(valid_path), vocab_size=300, sequence_length=16)
    lines: list[str] = []
    data = prepare_data(config, tmp_path / "cache", lines.append)
    assert data.statistics.duplicates_removed == 6 + 2
    assert decode(data, data.validation.store) == [*documents[3:9], "elsewhere"]
    assert decode(data, data.train.store) == documents[:3] + documents[9:] + documents[:3]
    assert any("dropped 8 training documents" in line for line in lines)
    with pytest.raises(InputError, match=r"0 tokens.*65 documents that are validation documents too were dropped"):
        prepare_data(replace(config, validation_corpus=str(train_path)), tmp_path / "cache")


def test_skipped_pieces_are_reported_also_from_the_cache(config: DataConfig, tmp_path: Path) -> None:
    with Path(config.corpus).open("ab") as file:
        file.write(b'{"text": ""}\n{bad\n\xe9\n')
    for _ in range(2):
        lines: list[str] = []
        data = prepare_data(config, tmp_path / "cache", lines.append)
        assert data.statistics.skipped == {
            "empty document": 1,
            "bad JSON (one object a line, or one array, is expected)": 1,
            "not UTF-8": 1,
        }
        assert data.statistics.examples["not UTF-8"] == "corpus.jsonl:203"
        assert any(line.startswith("skipped 1 x empty document (first: corpus.jsonl:201)") for line in lines)


def test_end_of_text_spelt_in_a_document_is_text(write_jsonl: WriteJsonl, tmp_path: Path) -> None:
    documents = [f"{i} <|endoftext|> " + "word " * 20 for i in range(20)]
    data = prepare_data(DataConfig(str(write_jsonl(documents)), vocab_size=300, sequence_length=16), tmp_path / "cache")
    tokens = np.asarray(data.train.store.tokens)
    assert (tokens == data.tokenizer.eos_token_id).sum() == data.statistics.train.documents
    assert set(decode(data, data.train.store)) <= set(documents)


def test_a_given_tokenizer_is_used(config: DataConfig, tmp_path: Path) -> None:
    train_tokenizer(["entirely other text"], 270).save_pretrained(tmp_path / "tokenizer")
    data = prepare_data(replace(config, tokenizer=str(tmp_path / "tokenizer")), tmp_path / "cache")
    assert len(data.tokenizer) == 270
    kept = load_training_tokenizer(str(data.folder / "tokenizer"))
    assert kept.backend_tokenizer.to_str() == data.tokenizer.backend_tokenizer.to_str()
    assert set(decode(data, data.train.store)) <= set(make_documents(200))


def test_data_too_small_for_a_row_say_how_small(config: DataConfig, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"holds [\d,]+ tokens in \d+ documents, fewer than the 100,001 of one row"):
        prepare_data(replace(config, sequence_length=100_000), tmp_path / "cache")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"sequence_length": 0}, "sequence_length must be at least 1"),
        ({"max_tokens": 1}, "max_tokens must be at least 2"),
        ({"max_validation_tokens": 0}, "max_validation_tokens must be at least 2"),
        ({"tokenizer_training_characters": 0}, "tokenizer_training_characters"),
        ({"validation_fraction": 0.0}, "validation_fraction must lie between 0 and 1.*validation_corpus"),
        ({"validation_fraction": 1.0}, "validation_fraction"),
        ({"vocab_size": 100}, "vocab_size 100"),
        ({"corpus": "nowhere.txt"}, "no corpus 'nowhere.txt'"),
        ({"validation_corpus": "nowhere.txt"}, "no corpus 'nowhere.txt'"),
    ],
)
def test_impossible_settings(config: DataConfig, change: dict[str, object], message: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=message):
        prepare_data(replace(config, **change), tmp_path / "cache")
    assert not list((tmp_path / "cache").glob("data/*/manifest.json"))


@pytest.mark.parametrize("kind", [RuntimeError, KeyboardInterrupt])
def test_a_preparation_cut_short_leaves_nothing_that_counts(
    kind: type[BaseException], config: DataConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:

    def fail(*_: object) -> NoReturn:
        raise kind

    with monkeypatch.context() as context:
        context.setattr("mixln.data.workers._encode", fail)
        with pytest.raises(kind):
            prepare_data(config, tmp_path / "cache")
    assert {path.suffix for path in (tmp_path / "cache" / "data").iterdir()} <= {".lock", ".partial"}
    data = prepare_data(config, tmp_path / "cache")
    assert len(decode(data, data.train.store)) > 100


def test_what_a_killed_preparation_left_is_removed(config: DataConfig, tmp_path: Path) -> None:
    data = prepare_data(config, tmp_path / "cache")
    folder = data.train.store.folder.parent
    stale = folder.with_name(folder.name + ".partial")
    stale.mkdir()
    folder.rename(stale / "data")
    again = prepare_data(config, tmp_path / "cache")
    assert again.statistics == data.statistics
    assert not stale.exists()


@pytest.mark.parametrize("damage", ["cut", "changed", "gone", "no manifest", "bad manifest", "empty manifest"])
def test_a_damaged_cache_is_prepared_anew(damage: str, config: DataConfig, tmp_path: Path) -> None:
    data = prepare_data(config, tmp_path / "cache")
    tokens = np.asarray(data.train.store.tokens).tolist()
    folder = data.train.store.folder.parent
    file = folder / "train" / "tokens-00000.bin"
    content = file.read_bytes()
    match damage:
        case "cut":
            file.write_bytes(content[:-2])
        case "changed":
            file.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
        case "gone":
            file.unlink()
        case "no manifest":
            (folder / "manifest.json").unlink()
        case "bad manifest":
            (folder / "manifest.json").write_text("{", encoding="utf-8")
        case _:
            (folder / "manifest.json").write_text("[]", encoding="utf-8")
    lines: list[str] = []
    again = prepare_data(config, tmp_path / "cache", lines.append)
    assert any("is damaged" in line and "anew" in line for line in lines)
    assert np.asarray(again.train.store.tokens).tolist() == tokens
    lines.clear()
    prepare_data(config, tmp_path / "cache", lines.append)
    assert not lines


@pytest.mark.slow
def test_two_processes_prepare_the_same_data_once(write_jsonl: WriteJsonl, tmp_path: Path) -> None:
    path = write_jsonl(make_documents(5000))
    program = (
        "import sys; from pathlib import Path; from mixln.data import DataConfig, prepare_data;"
        "data = prepare_data(DataConfig(sys.argv[1], vocab_size=400), Path(sys.argv[2]), "
        "lambda line: print('#', line));"
        "print(data.fingerprint, data.statistics, int(data.train.store.tokens.sum()))"
    )
    command = [sys.executable, "-c", program, str(path), str(tmp_path / "cache")]
    processes = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    outputs = [process.communicate()[0] for process in processes]
    assert [process.returncode for process in processes] == [0, 0]
    results = [[line for line in output.splitlines() if not line.startswith("#")] for output in outputs]
    assert results[0] == results[1]
    assert sum(output.count("# training a tokenizer") for output in outputs) == 1
    assert not list((tmp_path / "cache" / "data").glob("*.tmp-*"))


def test_who_waits_says_so_and_uses_what_the_other_built(tmp_path: Path) -> None:
    started, finish = threading.Event(), threading.Event()
    lines: list[str] = []

    def build(folder: Path, _: Path) -> dict[str, object]:
        started.set()
        finish.wait(10)
        (folder / "a").write_text("a", encoding="utf-8")
        return {"built": 1}

    def report(line: str) -> None:
        lines.append(line)
        finish.set()

    def never(*_: Path) -> NoReturn:
        raise AssertionError("built twice")

    def accept(_: object) -> None:
        return

    final = tmp_path / "key"
    with ThreadPoolExecutor(1) as pool:
        first = pool.submit(cache.finished_folder, final, build, report, accept=accept, chosen_by="cache")
        assert started.wait(10)
        second = cache.finished_folder(final, never, report, accept=accept, chosen_by="cache")
        assert second == first.result()
    assert len(lines) == 1
    assert "waiting for it" in lines[0]
    assert [path.name for path in tmp_path.iterdir()] == ["key"]


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EROFS, errno.EACCES])
def test_a_full_or_read_only_disk_is_an_input_error(
    code: int, config: DataConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> NoReturn:
        raise OSError(code, "cannot write")

    monkeypatch.setattr("mixln.data.store.TokenStoreWriter.extend", fail)
    place = r"cannot store prepared data in .*cache.* \(cannot write\)\. Free some space, or choose another folder"
    with pytest.raises(InputError, match=rf"{place} \(`cache`\)"):
        prepare_data(config, tmp_path / "cache")
    with pytest.raises(InputError, match=rf"{place} \(`out`\)"):
        prepare_data(config, out=tmp_path / "cache" / "out")


def test_a_file_in_place_of_the_cache_folder_is_an_input_error(config: DataConfig, tmp_path: Path) -> None:
    (tmp_path / "cache").write_text("", encoding="utf-8")
    with pytest.raises(InputError, match="cannot store prepared data"):
        prepare_data(config, tmp_path / "cache")


def test_checksums_of_large_files_see_cuts_and_ends(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(manifest, "_BLOCK", 16)
    path = tmp_path / "file"
    content = bytearray(16 * 1000 + 5)
    path.write_bytes(content)
    first = manifest.checksum(path)
    path.write_bytes(content[:-1])
    assert manifest.checksum(path) != first
    for position in (0, -1):
        changed = bytearray(content)
        changed[position] = 1
        path.write_bytes(changed)
        assert manifest.checksum(path) != first


def test_the_manifest_says_what_it_holds(config: DataConfig, tmp_path: Path) -> None:
    data = prepare_data(config, tmp_path / "cache")
    folder = data.train.store.folder.parent
    assert folder == tmp_path / "cache" / "data" / data.fingerprint
    manifest = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
    assert manifest["settings"]["vocab_size"] == 300
    assert manifest["statistics"]["train"]["tokens"] == data.statistics.train.tokens
    assert manifest["fingerprint"] == data.fingerprint
    assert manifest["mixln"] == __version__
    assert manifest["source"] == {"name": config.corpus, "fingerprint": open_corpus(config.corpus).fingerprint()}
    assert manifest["validation_source"] is None
    assert manifest["tokenizer"] == {
        "name": None, "sha256": tokenizer_hash(data.tokenizer), "eos_token_id": 0, "size": 300
    }  # fmt: skip
    for split, store in (("train", data.train.store), ("validation", data.validation.store)):
        assert manifest["shards"][split] == [{"file": f"{split}/tokens-00000.bin", "tokens": len(store)}]
    assert set(manifest["files"]) == {
        "tokenizer/tokenizer.json",
        "tokenizer/tokenizer_config.json",
        *(f"{split}/{name}" for split in ("train", "validation") for name in ("tokens-00000.bin", "document_ends.npy")),
    }


def test_python_is_prepared_without_settings_of_its_own(tmp_path: Path) -> None:
    config = DataConfig(vocab_size=500, max_tokens=30_000, tokenizer_training_characters=200_000, sequence_length=64)
    data = prepare_data(config, tmp_path / "cache")
    assert len(data.train) == (30_000 - 1) // 64
    assert data.validation.num_predicted_tokens > 1000


def test_real_web_text(shared_data: Path, tmp_path: Path) -> None:
    config = DataConfig(str(shared_data / "c4-sample.jsonl.gz"), vocab_size=1000)
    data = prepare_data(config, tmp_path / "cache")
    assert data.statistics.train.documents + data.statistics.validation.documents == 300
    assert not data.statistics.skipped
    assert data.statistics.train.tokens < data.statistics.train.characters / 2
