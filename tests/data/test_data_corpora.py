from __future__ import annotations

import gzip
import json
import os
import socket
from pathlib import Path
from typing import NoReturn

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from mixln.data import corpus_python, open_corpus
from mixln.errors import InputError


def read(path: Path, text_field: str = "text") -> list[str]:
    return list(open_corpus(str(path), text_field=text_field).documents())


def write_parquet(path: Path, **columns: list[object]) -> Path:
    pq.write_table(pa.table(columns), path, row_group_size=2)
    return path


def test_every_kind_of_file_is_read_in_the_order_of_paths(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes(b"\xef\xbb\xbfone\r\n\ttwo")
    (tmp_path / "b.md").write_text("# three", encoding="utf-8")
    (tmp_path / "c.txt.gz").write_bytes(gzip.compress("vier 🎉".encode()))
    (tmp_path / "d.jsonl").write_text('\ufeff{"text": "five"}\n\n{"text": "six", "id": 6}\n', encoding="utf-8")
    (tmp_path / "e.jsonl.gz").write_bytes(gzip.compress(b'{"text": "seven"}'))
    write_parquet(tmp_path / "f.parquet", text=["eight", "nine", "ten"], id=[8, 9, 10])
    (tmp_path / "g").mkdir()
    (tmp_path / "g" / "H.TXT").write_text("eleven", encoding="utf-8")
    corpus = open_corpus(str(tmp_path))
    expected = ["eleven", "one\r\n\ttwo", "# three", "vier 🎉", "five", "six", "seven", "eight", "nine", "ten"]
    assert sorted(corpus.documents()) == sorted(expected)
    assert list(corpus.documents()) == list(corpus.documents())
    assert not corpus.skipped


def test_what_cannot_be_used_is_counted_with_its_first_place(tmp_path: Path) -> None:
    lines = [
        b'{"text": "good"}',
        b"{not json",
        b'{"text": "caf\xe9"}',  # Latin-1
        b'["text"]',
        b'{"body": "x", "id": 1}',
        b'{"text": null}',
        b'{"text": " \\n"}',
        b'{"text": "\\ud800"}',
        b"[" * 100_000,
        b"also not json",
    ]
    (tmp_path / "a.jsonl").write_bytes(b"\n".join(lines))
    (tmp_path / "b.txt").write_bytes(b"caf\xe9")
    (tmp_path / "c.txt").write_bytes(b"")
    (tmp_path / "d.txt.gz").write_bytes(gzip.compress(b"x" * 5000)[:-9])
    (tmp_path / "e.txt.gz").write_bytes(b"not gzip at all")
    (tmp_path / "f.parquet").write_bytes(b"not parquet")
    (tmp_path / "g.pdf").write_bytes(b"%PDF")
    (tmp_path / "h.txt").symlink_to(tmp_path / "gone.txt")
    (tmp_path / "loop").symlink_to(tmp_path)
    os.mkfifo(tmp_path / "pipe.txt")
    corpus = open_corpus(str(tmp_path))
    for _ in range(2):  # a second reading does not count twice
        assert list(corpus.documents()) == ["good"]
        counts = {reason.split(" (")[0]: count for reason, count in corpus.skipped.items()}
        assert counts == {
            "bad JSON": 3,
            "not UTF-8": 2,
            "not a JSON object": 1,
            "no field 'text'": 1,
            "field 'text' is not a string": 1,
            "empty document": 2,
            "lone surrogate": 1,
            "corrupt gzip data": 2,
            "corrupt Parquet data": 1,
            "unknown suffix": 1,
            "not a regular file, or a broken link": 2,
            "folder linked a second time": 1,
        }
    examples = {reason.split(" (")[0]: place for reason, place in corpus.examples.items()}
    assert examples["bad JSON"] == "a.jsonl:2"
    assert examples["no field 'text'"] == "a.jsonl:5, whose fields are: body, id"
    assert "3 x bad JSON" in corpus.describe_skipped()


def test_rows_before_the_corruption_of_a_gzip_file_are_kept(tmp_path: Path) -> None:
    rows = b"".join(json.dumps({"text": f"{i} {os.urandom(40).hex()}"}).encode() + b"\n" for i in range(500))
    compressed = gzip.compress(rows)
    path = tmp_path / "a.jsonl.gz"
    path.write_bytes(compressed[: len(compressed) // 2])
    corpus = open_corpus(str(path))
    assert len(list(corpus.documents())) > 100
    assert list(corpus.skipped) == ["corrupt gzip data (the rest of the file is lost)"]


def test_parquet_rows_that_are_not_text_are_counted(tmp_path: Path) -> None:
    invalid = pa.Array.from_buffers(
        pa.string(), 1, [None, pa.array([0, 1], pa.int32()).buffers()[1], pa.py_buffer(b"\xe9")]
    )
    pq.write_table(pa.table({"text": pa.concat_arrays([pa.array(["a", None, "b"]), invalid])}), tmp_path / "a.parquet")
    corpus = open_corpus(str(tmp_path / "a.parquet"))
    assert list(corpus.documents()) == ["a", "b"]
    assert corpus.skipped == {"field 'text' is not a string": 1, "not UTF-8": 1}
    assert corpus.examples["not UTF-8"] == "a.parquet:4"


def test_parquet_without_the_column_names_the_columns(tmp_path: Path) -> None:
    path = write_parquet(tmp_path / "a.parquet", body=["x"], id=[1])
    with pytest.raises(InputError, match=r"no column 'text'.*body, id"):
        read(path)
    assert read(path, text_field="body") == ["x"]


def test_nothing_usable_is_an_error_with_the_counts(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"body": "x"}\n' * 3, encoding="utf-8")
    with pytest.raises(InputError, match=r"3 x no field 'text' \(first: a.jsonl:1, whose fields are: body\)"):
        read(tmp_path / "a.jsonl")
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="nothing is there"):
        read(tmp_path / "empty")


def test_unreadable_files_are_counted_and_all_unreadable_is_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "a.txt").write_text("a", encoding="utf-8")

    def refuse(*_: object, **__: object) -> NoReturn:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "open", refuse)  # a chmod would not keep root out
    corpus = open_corpus(str(tmp_path))
    corpus.fingerprint()
    with pytest.raises(InputError, match=r"1 x unreadable file \(Permission denied\) \(first: a.txt\)"):
        list(corpus.documents())


def test_a_missing_path_is_an_error_with_a_way_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "books.jsonl").write_text("", encoding="utf-8")
    with pytest.raises(InputError, match=r"did you mean .*books\.jsonl"):
        open_corpus(str(tmp_path / "boks.jsonl"))
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match="did you mean python"):
        open_corpus("pyhton")
    with pytest.raises(InputError, match="hf:allenai/c4"):
        open_corpus("allenai/c4")
    with pytest.raises(InputError, match="no corpus ''"):
        open_corpus("")
    (tmp_path / "a.pdf").write_bytes(b"%PDF")
    with pytest.raises(InputError, match=r"unknown kind of file.*\.parquet"):
        open_corpus(str(tmp_path / "a.pdf"))


def test_the_fingerprint_follows_content_names_and_field(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("one", encoding="utf-8")
    first = open_corpus(str(tmp_path)).fingerprint()
    assert open_corpus(str(tmp_path)).fingerprint() == first
    assert open_corpus(str(tmp_path), text_field="body").fingerprint() != first
    (tmp_path / "a.txt").write_text("two", encoding="utf-8")
    second = open_corpus(str(tmp_path)).fingerprint()
    (tmp_path / "a.txt").rename(tmp_path / "b.txt")
    assert len({first, second, open_corpus(str(tmp_path)).fingerprint()}) == 3


def test_python_needs_no_network_and_is_the_same_every_time(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> NoReturn:
        raise AssertionError("network")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    corpus = open_corpus("python")
    documents = list(corpus.documents())
    assert list(corpus.documents()) == documents
    assert corpus.fingerprint() == open_corpus("python").fingerprint()
    assert sum(map(len, documents)) > 1_000_000
    assert any("def namedtuple(" in document for document in documents)
    assert any("Return the arc cosine" in document for document in documents)
    assert not any("0x7f" in document and " at 0x7f" in document for document in documents)


def test_python_takes_what_is_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "good.py").write_text("'''Good.'''\n", encoding="utf-8")
    (tmp_path / "latin.py").write_bytes(b"# coding: latin-1\n# caf\xe9\n")
    (tmp_path / "bad.py").write_bytes(b"# caf\xe9\n")
    (tmp_path / "empty.py").write_bytes(b"")
    for excluded in ("test", "site-packages"):
        (tmp_path / excluded).mkdir()
        (tmp_path / excluded / "a.py").write_text("excluded", encoding="utf-8")
    monkeypatch.setattr("sysconfig.get_path", lambda _: str(tmp_path))
    monkeypatch.setattr(corpus_python, "_C_MODULES", ("no_such_module",))
    monkeypatch.setattr(corpus_python, "_topics", lambda: iter(()))
    corpus = open_corpus("python")
    assert list(corpus.documents()) == ["'''Good.'''\n", "# coding: latin-1\n# café\n"]
    assert corpus.skipped == {"not text in its declared encoding": 1}
    monkeypatch.setattr("sysconfig.get_path", lambda _: str(tmp_path / "gone"))
    with pytest.raises(InputError, match="no usable document in 'python'"):
        list(corpus.documents())
