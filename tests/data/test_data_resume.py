"""Preparation by several processes, after interruptions, from damaged files: always the same bytes."""

from __future__ import annotations

import errno
import json
import multiprocessing
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Generator, Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import datasets
import numpy as np
import pytest

from mixln.data import DataConfig, build, pieces, prepare_data, train_tokenizer
from mixln.data.corpus_hub import HubCorpus
from mixln.data.pieces import Documents, Piece
from mixln.data.prepared_folder import find_prepared_folder
from mixln.data.workers import tokenized_batches
from mixln.errors import InputError
from mixln.storage import write_file

WORDS = ["the", "quick", "brown", "fox", "jumps", "over", "a", "lazy", "dog", "and", "then", "some", "more"]
PIECE_CHARACTERS = 4000


def write_documents(path: Path, count: int, seed: int) -> Path:
    generator = random.Random(seed)
    texts = [" ".join(generator.choices(WORDS, k=generator.randint(3, 60))) + f" {i} {seed}" for i in range(count)]
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts), encoding="utf-8")
    return path


def content(folder: Path) -> dict[str, bytes]:
    return {
        file.relative_to(folder).as_posix(): file.read_bytes() for file in sorted(folder.rglob("*")) if file.is_file()
    }


@pytest.fixture(autouse=True)
def small_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pieces, "_MIN_PIECE_CHARACTERS", PIECE_CHARACTERS)
    monkeypatch.setattr(pieces, "_MAX_PIECE_CHARACTERS", PIECE_CHARACTERS)
    monkeypatch.setattr("mixln.data.corpus_files._PART_BYTES", 60_000)
    monkeypatch.setattr("mixln.data.store.SHARD_TOKENS", 10_000)


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """PART-NUMBER of the pieces that are tokenised for this process."""
    names: list[str] = []
    tokenized = build.tokenized

    def record(*arguments: Any) -> Generator[tuple[Piece, Documents], None, None]:
        for piece, documents in tokenized(*arguments):
            names.append(f"{piece.part}-{piece.number}")
            yield piece, documents

    monkeypatch.setattr(build, "tokenized", record)
    return names


def stored(partial: Path) -> int:
    """How many pieces an interrupted preparation has stored."""
    try:
        checkpoint = json.loads((partial / "checkpoint.json").read_text(encoding="utf-8"))
    except FileNotFoundError:
        return 0
    return sum(progress["pieces"] for progress in checkpoint.get("progress", {}).values())


def wait_for_pieces(process: subprocess.Popen[Any], partial: Path, count: int) -> None:
    deadline = time.monotonic() + 120
    while stored(partial) < count:
        assert process.poll() is None, "it ended too early"
        assert time.monotonic() < deadline
        time.sleep(0.002)


@pytest.fixture
def config(tmp_path: Path) -> DataConfig:
    """A folder of several parts: files above and below the size of a part, bad lines, and a duplicate of validation."""
    folder = tmp_path / "corpus"
    folder.mkdir()
    for number, count in enumerate((500, 20, 30, 900)):
        write_documents(folder / f"{number}.jsonl", count, number)
    with (folder / "1.jsonl").open("a", encoding="utf-8") as file:
        file.write('{"text": ""}\n{bad\n')
    (folder / "picture.png").write_bytes(b"")
    validation = write_documents(tmp_path / "validation.jsonl", 100, 99)
    with (folder / "3.jsonl").open("a", encoding="utf-8") as file:
        file.write(validation.read_text(encoding="utf-8").splitlines()[0] + "\n")
    return DataConfig(str(folder), str(validation), vocab_size=300, sequence_length=16)


def test_pieces_join_to_what_one_piece_gives(
    config: DataConfig, tmp_path: Path, made: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for change in ({}, {"validation_corpus": None}, {"max_tokens": 23_456}):
        del made[:]
        small = prepare_data(replace(config, **change), tmp_path / "small")
        assert len({name for name in made if name.endswith("-0")}) >= 2, "several parts"
        assert len(made) > 10
        with monkeypatch.context() as context:
            context.setattr(pieces, "_MIN_PIECE_CHARACTERS", 10**9)
            context.setattr(pieces, "_MAX_PIECE_CHARACTERS", 10**9)
            context.setattr("mixln.data.corpus_files._PART_BYTES", 10**9)
            large = prepare_data(replace(config, **change), tmp_path / "large")
        assert np.array_equal(small.train.store.tokens, large.train.store.tokens)
        assert np.array_equal(small.train.store.document_ends, large.train.store.document_ends)
        assert np.array_equal(small.validation.store.tokens, large.validation.store.tokens)
        assert small.fingerprint == large.fingerprint
        if not change.get("max_tokens"):
            assert small.statistics == large.statistics
            assert small.statistics.skipped["empty document"] == 1
            assert sum(small.statistics.skipped.values()) == 3
            assert small.statistics.duplicates_removed == ("validation_corpus" not in change)
        else:
            assert small.statistics.train == large.statistics.train
        assert not list((tmp_path / "small" / "data").glob("*.partial")), "removed in the end"


@pytest.mark.slow
def test_the_number_of_workers_does_not_show(config: DataConfig, tmp_path: Path) -> None:
    alone = prepare_data(config, out=tmp_path / "alone", workers=1)
    assert len(alone.train.store.shards) > 3
    prepare_data(config, out=tmp_path / "together", workers=2)
    assert content(tmp_path / "alone") == content(tmp_path / "together")
    assert not multiprocessing.active_children()


@pytest.mark.slow
def test_the_number_of_workers_does_not_show_where_tokens_are_limited(config: DataConfig, tmp_path: Path) -> None:
    limited = replace(config, max_tokens=12_345)
    prepare_data(limited, out=tmp_path / "alone", workers=1)
    prepare_data(limited, out=tmp_path / "together", workers=3)
    assert content(tmp_path / "alone") == content(tmp_path / "together")


PROGRAM = f"""
import sys
from pathlib import Path
from mixln.data import DataConfig, pieces, prepare_data, corpus_files, store
pieces._MIN_PIECE_CHARACTERS = pieces._MAX_PIECE_CHARACTERS = {PIECE_CHARACTERS}
corpus_files._PART_BYTES = 60_000
store.SHARD_TOKENS = 10_000
if __name__ == "__main__":
    config = DataConfig(sys.argv[1], sys.argv[2], vocab_size=300, sequence_length=16)
    prepare_data(config, out=Path(sys.argv[3]), workers=int(sys.argv[4]))
"""


@pytest.mark.slow
@pytest.mark.parametrize("workers", [1, 2])
def test_a_killed_preparation_goes_on_from_its_pieces(
    workers: int, config: DataConfig, tmp_path: Path, made: list[str]
) -> None:
    write_documents(Path(config.corpus) / "4.jsonl", 4000, 4)
    prepare_data(config, out=tmp_path / "undisturbed")
    total = len(made)
    del made[:]
    out = tmp_path / "out"
    command = [sys.executable, "-c", PROGRAM, config.corpus, str(config.validation_corpus), str(out), str(workers)]
    process = subprocess.Popen(command)
    wait_for_pieces(process, tmp_path / "out.partial", 15)
    tree = [
        Path("/proc", child) for child in Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    ]
    assert len([child for child in tree if b"spawn_main" in (child / "cmdline").read_bytes()]) == (0, 2)[workers > 1]
    process.send_signal(signal.SIGKILL)
    process.wait()
    deadline = time.monotonic() + 60
    while any(child.exists() for child in tree):
        assert time.monotonic() < deadline, "workers end with their parent"
        time.sleep(0.1)
    kept = stored(tmp_path / "out.partial")
    assert not out.exists()
    assert 15 <= kept < total
    lines: list[str] = []
    prepare_data(config, out=out, report=lines.append)
    assert content(out) == content(tmp_path / "undisturbed")
    assert len(made) == total - kept
    assert any(f"({kept:,} pieces were found finished)" in line for line in lines)
    assert not any("training a tokenizer" in line for line in lines), "that is kept too"
    assert [path.name for path in tmp_path.glob("out*")] == ["out"]


@pytest.mark.slow
def test_an_interrupt_stops_the_workers_quietly_and_keeps_what_is_stored(config: DataConfig, tmp_path: Path) -> None:
    write_documents(Path(config.corpus) / "4.jsonl", 8000, 4)
    command = [sys.executable, "-c", PROGRAM, config.corpus, str(config.validation_corpus), str(tmp_path / "out"), "2"]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, start_new_session=True)
    wait_for_pieces(process, tmp_path / "out.partial", 10)
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does
    _, shown = process.communicate(timeout=60)
    assert process.returncode not in (0, None)
    assert shown.count("Traceback") == 1, "only that of the process itself"
    assert shown.strip().endswith("Run the same command again to go on")
    assert stored(tmp_path / "out.partial") >= 10
    assert sorted(path.name for path in tmp_path.glob("out*")) == ["out.partial"]


@pytest.mark.parametrize(
    "damage",
    ["none", "more", "cut", "changed", "gone", "other ends", "no checkpoint", "half a checkpoint", "another plan"],
)
def test_what_is_damaged_is_tokenised_again(
    damage: str, config: DataConfig, tmp_path: Path, made: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    prepare_data(config, out=tmp_path / "undisturbed")
    total = len(made)
    with monkeypatch.context() as context:
        context.setattr("mixln.data.store.TokenStoreWriter.close", lambda _: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            prepare_data(config, out=tmp_path / "out")
    assert len(made) == 2 * total
    del made[:]
    folder = tmp_path / "out.partial" / "data" / "train"
    *_, file, last = sorted(folder.glob("tokens-*.bin"))
    ends, checkpoint = folder / "document_ends.npy", tmp_path / "out.partial" / "checkpoint.json"
    old = file.read_bytes()
    match damage:
        case "none":
            pass
        case "more":  # written after the checkpoint
            last.write_bytes(last.read_bytes() + b"more")
            last.with_name("tokens-00099.bin").write_bytes(b"more")
            ends.write_bytes(ends.read_bytes() + b"more")
        case "cut":
            file.write_bytes(old[:-100])
        case "changed":
            file.write_bytes(old[:-200] + bytes([old[-200] ^ 1]) + old[-199:])
        case "gone":
            file.unlink()
        case "other ends":
            ends.write_bytes(ends.read_bytes()[:-1] + b"x")
        case "no checkpoint":
            checkpoint.unlink()
        case "half a checkpoint":
            checkpoint.write_bytes(checkpoint.read_bytes()[:-10])
        case _:
            checkpoint.write_text('{"plan": {}}', encoding="utf-8")
    lines: list[str] = []
    prepare_data(config, out=tmp_path / "out", report=lines.append)
    assert content(tmp_path / "out") == content(tmp_path / "undisturbed")
    assert len(made) == (0 if damage in ("none", "more") else total)
    is_named = any("train is damaged" in line and "tokenising all of it again" in line for line in lines)
    assert is_named == (damage in ("cut", "changed", "gone", "other ends"))


def test_an_output_folder_goes_on_with_the_same_data_only(
    config: DataConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    train_tokenizer(["some text"], 270).save_pretrained(tmp_path / "tokenizer")
    config = replace(config, tokenizer=str(tmp_path / "tokenizer"))
    other = replace(config, corpus=str(write_documents(tmp_path / "other.jsonl", 500, 7)))
    prepare_data(other, out=tmp_path / "undisturbed")
    with monkeypatch.context() as context:
        context.setattr("mixln.data.store.TokenStoreWriter.close", lambda _: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            prepare_data(config, out=tmp_path / "out")
    prepare_data(other, out=tmp_path / "out")
    assert content(tmp_path / "out") == content(tmp_path / "undisturbed")


def test_a_full_disk_keeps_what_is_stored(
    config: DataConfig, tmp_path: Path, made: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    prepare_data(config, out=tmp_path / "undisturbed")
    total = len(made)
    del made[:]

    def fill(path: Path, text: str) -> Path:
        if len(made) == 13:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))
        return write_file(path, text)

    with monkeypatch.context() as context:
        context.setattr(build, "write_file", fill)
        with pytest.raises(InputError, match=r"No space left on device.*the same command then goes on"):
            prepare_data(config, out=tmp_path / "out")
    assert stored(tmp_path / "out.partial") == 12
    prepare_data(config, out=tmp_path / "out")
    assert len(made) == total + 1, "none was made twice but the one that could not be stored"
    assert content(tmp_path / "out") == content(tmp_path / "undisturbed")


class LocalHubCorpus(HubCorpus):
    """A dataset of several data files, without a hub; as a class of its own so that other processes have it too."""

    def __init__(self, files: list[str]) -> None:
        super().__init__("x", "text")
        self.files = files

    def _load(self) -> Iterable[dict[str, object]]:
        loaded = datasets.load_dataset("json", data_files=self.files, split="train", streaming=True)
        return cast("Iterable[dict[str, object]]", loaded)


@pytest.mark.slow
def test_data_files_of_a_dataset_are_read_in_parallel_and_joined_in_order(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, made: list[str]
) -> None:
    files = [str(write_documents(tmp_path / f"{number}.jsonl", 300, number)) for number in range(3)]
    monkeypatch.setattr("mixln.data.prepare.open_corpus", lambda *_, **__: LocalHubCorpus(files))
    corpus = LocalHubCorpus(files)
    texts = [json.loads(line)["text"] for file in files for line in Path(file).read_text().splitlines()]
    assert list(corpus.documents()) == texts
    assert len(corpus.parts()) == 3
    config = DataConfig("hf:x", max_tokens=6000, vocab_size=300, sequence_length=16)
    alone = prepare_data(config, out=tmp_path / "alone")
    assert {name.split("-")[0] for name in made} == {"0", "1"}, "no more is read than is needed"
    prepare_data(config, out=tmp_path / "together", workers=2)
    assert content(tmp_path / "alone") == content(tmp_path / "together")
    ends = alone.train.store.document_ends
    decoded = [
        str(alone.tokenizer.decode(document[:-1])) for document in np.split(alone.train.store.tokens, ends[:-1])[:-1]
    ]
    places = [texts.index(text) for text in decoded]
    assert places == sorted(places)


def test_a_dataset_that_changes_between_processes_is_an_input_error(tmp_path: Path) -> None:
    corpus = LocalHubCorpus([str(write_documents(tmp_path / f"{number}.jsonl", 5, number)) for number in range(3)])
    part = corpus.parts()[0]
    corpus.files.pop()
    corpus.parts()
    with pytest.raises(InputError, match=r"had 3 data files and now has 2.*name a revision"):
        list(corpus.read(part))


@pytest.mark.slow
def test_a_worker_that_is_killed_or_fails_ends_the_preparation() -> None:
    tokenizer = train_tokenizer(["some text"], 300).backend_tokenizer
    with pytest.raises(TypeError):  # no text, which the corpora keep back
        list(tokenized_batches([["some text"], ["\ud800"]], tokenizer, 2))

    def batches() -> Iterator[list[str]]:
        for number in range(10):
            if number == 3:
                os.kill(cast("int", multiprocessing.active_children()[0].pid), signal.SIGKILL)
            yield ["some text"]

    with pytest.raises(InputError, match=r"a worker process \(of 2\) was killed.*fewer workers"):
        list(tokenized_batches(batches(), tokenizer, 2))
    assert not multiprocessing.active_children()


@pytest.mark.parametrize("workers", [0, -3])
def test_an_impossible_number_of_workers(workers: int, config: DataConfig, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=f"workers must be at least 1, got {workers}"):
        prepare_data(config, tmp_path, workers=workers)


@pytest.fixture
def prepared(config: DataConfig, tmp_path: Path) -> Path:
    train_tokenizer(["entirely other text"], 270).save_pretrained(tmp_path / "tokenizer")
    config = replace(config, tokenizer=str(tmp_path / "tokenizer"), max_tokens=20_000)
    prepare_data(config, out=tmp_path / "prepared")
    moved = tmp_path / "elsewhere" / "data"
    moved.parent.mkdir()
    (tmp_path / "prepared").rename(moved)
    for gone in (tmp_path / "tokenizer", Path(config.corpus)):
        shutil.rmtree(gone)
    Path(str(config.validation_corpus)).unlink()
    return moved


def test_a_moved_folder_is_a_corpus_with_its_own_tokenizer(prepared: Path, tmp_path: Path) -> None:
    data = prepare_data(DataConfig(str(prepared), sequence_length=32), tmp_path / "cache")
    manifest = json.loads((prepared / "manifest.json").read_text(encoding="utf-8"))
    assert data.fingerprint == manifest["fingerprint"]
    assert len(data.tokenizer) == 270
    assert len(data.train.store) == 20_000
    assert data.train.sequence_length == 32
    assert data.folder == prepared
    assert not (tmp_path / "cache").exists()
    same = DataConfig(
        str(prepared),
        tokenizer=manifest["settings"]["tokenizer"],
        validation_corpus=manifest["settings"]["validation_corpus"],
        max_tokens=20_000,
        vocab_size=1234,  # of no effect with a given tokenizer
    )
    assert prepare_data(same, tmp_path / "cache").fingerprint == data.fingerprint
    copy = tmp_path / "copy"
    data.tokenizer.save_pretrained(copy)
    prepare_data(replace(same, tokenizer=str(copy)), tmp_path / "cache")  # another name of the same tokenizer
    with pytest.raises(InputError, match="is prepared already"):
        prepare_data(same, out=tmp_path / "again")
    with pytest.raises(InputError, match="both splits"):
        prepare_data(DataConfig(validation_corpus=str(prepared)), tmp_path / "cache")


def test_a_folder_called_python_has_to_be_given_as_a_path(prepared: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(prepared.rename(prepared.with_name("python")).parent)
    assert prepare_data(DataConfig("./python")).tokenizer.vocab_size == 270
    assert find_prepared_folder("python") is None
    assert find_prepared_folder("./python") is not None


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"tokenizer": "nowhere/none"}, r"tokenizer=.*/tokenizer .*but tokenizer=nowhere/none is given"),
        ({"max_tokens": 30_000}, r"prepared with max_tokens=20000, but max_tokens=30000 is given"),
        ({"max_validation_tokens": 5}, r"max_validation_tokens=32768, but max_validation_tokens=5 is given"),
        ({"validation_corpus": "python"}, r"validation_corpus=.*validation.jsonl, but validation_corpus=python"),
        ({"text_field": "body"}, r"text_field=text, but text_field=body"),
    ],
)
def test_settings_that_contradict_a_prepared_folder(change: dict[str, Any], message: str, prepared: Path) -> None:
    with pytest.raises(InputError, match=message):
        prepare_data(replace(DataConfig(str(prepared)), **change))


def test_another_tokenizer_contradicts_a_prepared_folder(prepared: Path, tmp_path: Path) -> None:
    train_tokenizer(["yet another text"], 280).save_pretrained(tmp_path / "other")
    with pytest.raises(InputError, match=r"tokenizer=.*/tokenizer .*but tokenizer=.*other is given"):
        prepare_data(DataConfig(str(prepared), tokenizer=str(tmp_path / "other")))


def test_a_damaged_or_old_prepared_folder_is_refused(prepared: Path) -> None:
    shard = prepared / "train" / "tokens-00001.bin"
    old = shard.read_bytes()
    shard.write_bytes(old[:-1] + b"x")
    with pytest.raises(InputError, match=r"damaged \(train/tokens-00001.bin has changed\); copy or prepare"):
        prepare_data(DataConfig(str(prepared)))
    shard.write_bytes(old)
    manifest = json.loads((prepared / "manifest.json").read_text(encoding="utf-8"))
    manifest["format"] = 1
    (prepared / "manifest.json").write_text(json.dumps(manifest), encoding="utf-8")
    with pytest.raises(InputError, match="in format 1, and this version reads format 2"):
        prepare_data(DataConfig(str(prepared)))


def something_else(out: Path) -> None:
    out.mkdir()
    (out / "notes.txt").write_text("mine", encoding="utf-8")


def other_manifest(out: Path) -> None:
    out.mkdir()
    (out / "manifest.json").write_text('{"files": {}}', encoding="utf-8")


def a_file(out: Path) -> None:
    out.write_text("mine", encoding="utf-8")


@pytest.mark.parametrize("occupy", [something_else, other_manifest, a_file])
def test_an_output_folder_that_holds_something_else_stays_as_it_is(
    occupy: Callable[[Path], None], config: DataConfig, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    occupy(out)
    before = content(out) if out.is_dir() else out.read_bytes()
    with pytest.raises(InputError, match=r"out.*another folder"):
        prepare_data(config, out=out)
    assert (content(out) if out.is_dir() else out.read_bytes()) == before


def test_an_output_folder_is_written_once_and_for_one_corpus(
    config: DataConfig, tmp_path: Path, made: list[str]
) -> None:
    (tmp_path / "out").mkdir()  # empty: as good as none
    first = prepare_data(config, out=tmp_path / "out")
    del made[:]
    assert prepare_data(config, out=tmp_path / "out").fingerprint == first.fingerprint
    assert not made
    with pytest.raises(InputError, match=rf"other prepared data \(fingerprint {first.fingerprint}, not "):
        prepare_data(replace(config, max_tokens=100), out=tmp_path / "out")
