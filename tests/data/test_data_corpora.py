from __future__ import annotations

import bz2
import gzip
import json
import lzma
import os
import socket
from pathlib import Path
from typing import NoReturn

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from mixln.data import corpus as corpus_base
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
    assert not corpus.left_out.skipped


def test_what_cannot_be_used_is_counted_with_its_first_place(tmp_path: Path) -> None:
    lines = [
        b"{not json",
        b'{"text": "caf\xe9"}',  # Latin-1
        b'["text"]',
        b'{"body": "x", "id": 1}',
        b'{"text": 3}',
        b'{"text": null}',
        b'{"text": " \\n"}',
        b'{"text": "\\ud800"}',
        b"[" * 100_000,
        b"also not json",
    ]
    good = [b'{"text": "good"}'] * 900
    (tmp_path / "a.jsonl").write_bytes(b"\r\n".join([*good, *lines]))
    (tmp_path / "b.txt").write_bytes(b"caf\xe9")
    (tmp_path / "c.txt").write_bytes(b"")
    (tmp_path / "g.pdf").write_bytes(b"%PDF")
    (tmp_path / "loop").symlink_to(tmp_path)
    (tmp_path / "z.jsonl").symlink_to(tmp_path / "a.jsonl")
    os.mkfifo(tmp_path / "pipe.txt")
    corpus = open_corpus(str(tmp_path))
    for _ in range(2):  # a second reading does not count twice
        assert list(corpus.documents()) == ["good"] * 900
        counts = {reason.split(" (")[0]: count for reason, count in corpus.left_out.skipped.items()}
        del counts["empty document"]
        assert counts == {
            "bad JSON": 3,
            "not UTF-8": 2,
            "not a JSON object": 1,
            "no field 'text'": 1,
            "field 'text' is not a string": 1,
            "lone surrogate": 1,
            "unknown suffix": 1,
            "not a regular file": 1,
            "folder linked a second time": 1,
            "file linked a second time": 1,
        }
        assert (
            sum(count for reason, count in corpus.left_out.skipped.items() if reason.startswith("empty document")) == 3
        )
        assert corpus.left_out.lost == 9
    examples = {reason.split(" (")[0]: place for reason, place in corpus.left_out.examples.items()}
    assert examples["bad JSON"] == "a.jsonl:901"
    assert examples["no field 'text'"] == "a.jsonl:904, whose fields are: body, id"
    assert "3 x bad JSON" in corpus.left_out.describe()


@pytest.mark.parametrize(("lost", "refused"), [(1, False), (2, True)])
def test_more_than_a_hundredth_lost_is_refused(lost: int, refused: bool, tmp_path: Path) -> None:
    rows = ['{"text": "good"}'] * (100 - lost) + ['{"text": '] * lost
    path = tmp_path / "a.jsonl"
    path.write_text("\n".join(rows), encoding="utf-8")
    corpus = open_corpus(str(path))
    if not refused:
        assert len(corpus.first(1000)) == 99
        return
    for read_all in (lambda: list(corpus.documents()), lambda: corpus.first(1000)):
        with pytest.raises(InputError, match=r"2 of 100 documents in .* more than the 1% .*2 x bad JSON"):
            read_all()
    assert len(corpus.first(50)) == 50  # of which nothing was lost
    (tmp_path / "empty.jsonl").write_text('{"text": "x"}\n' + '{"text": null}\n{"text": ""}\n' * 50, encoding="utf-8")
    assert read(tmp_path / "empty.jsonl") == ["x"]  # of empty documents nothing can be lost


@pytest.mark.parametrize("layout", ["one line", "lines", "indented", "object", "with a byte order mark"])
def test_a_json_array_is_its_entries(layout: str, tmp_path: Path) -> None:
    rows = [{"text": f"document {number}", "id": number} for number in range(12)]
    content = {
        "one line": json.dumps(rows),
        "lines": "[\n" + ",\n".join(map(json.dumps, rows)) + "\n]\n",
        "indented": json.dumps(rows, indent=2),
        "object": json.dumps(rows[0], indent=2),
        "with a byte order mark": "\ufeff" + json.dumps(rows),
    }[layout]
    path = tmp_path / "a.json"
    path.write_text(content, encoding="utf-8")
    assert read(path) == [row["text"] for row in rows[: 1 if layout == "object" else 12]]
    path.write_text(content[: len(content) // 2], encoding="utf-8")
    with pytest.raises(InputError, match=r"cannot be read|no usable document"):
        read(path)


def compressed(name: str, content: bytes) -> bytes:
    return {
        ".gz": gzip.compress,
        ".bz2": bz2.compress,
        ".xz": lzma.compress,
        ".zst": lambda data: pa.compress(data, "zstd", asbytes=True),
    }[name](content)


@pytest.mark.parametrize("suffix", [".gz", ".bz2", ".xz", ".zst"])
@pytest.mark.parametrize("kind", [".jsonl", ".txt"])
def test_a_compressed_file_is_read_whole_or_refused(kind: str, suffix: str, tmp_path: Path) -> None:
    rows = [f"{number} {os.urandom(40).hex()}" for number in range(500)]
    lines = [json.dumps({"text": row}) for row in rows] if kind == ".jsonl" else rows
    content = compressed(suffix, "\n".join(lines).encode())
    path = tmp_path / f"a{kind}{suffix}"
    path.write_bytes(content)
    assert read(path) == (rows if kind == ".jsonl" else ["\n".join(rows)])
    (tmp_path / "b.txt").write_text("whole", encoding="utf-8")
    for damaged in (content[: len(content) // 2], content[:-2], b"something else"):
        path.write_bytes(damaged)
        for corpus in (path, tmp_path):
            with pytest.raises(InputError, match=rf"a{kind}{suffix} is damaged or cut off"):
                read(corpus)


def test_files_that_cannot_be_read_whole_are_refused(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("a", encoding="utf-8")
    whole = write_parquet(tmp_path / "b.parquet", text=["b"] * 100).read_bytes()
    for content in (b"not parquet", whole[: len(whole) // 2], b""):
        (tmp_path / "b.parquet").write_bytes(content)
        with pytest.raises(InputError, match=r"b.parquet is damaged or cut off"):
            read(tmp_path)
    (tmp_path / "b.parquet").unlink()
    (tmp_path / "c.jsonl.lz4").write_bytes(b"x")
    with pytest.raises(InputError, match=r"c.jsonl.lz4 has a kind of compression that cannot be read"):
        read(tmp_path)
    (tmp_path / "c.jsonl.lz4").unlink()
    (tmp_path / "h.txt").symlink_to(tmp_path / "gone.txt")
    with pytest.raises(InputError, match=r"h.txt is a link to .*gone.txt, which is not there"):
        read(tmp_path)


def test_a_snapshot_of_a_dataset_is_its_data(tmp_path: Path) -> None:
    """As a hub's client, a notebook and a training run leave it: links to blobs, descriptions, copies, a model."""
    files = {
        "blobs/1": json.dumps({"text": "one"}),
        "snapshot/README.md": "# A dataset",
        "snapshot/LICENSE.txt": "All of it",
        "snapshot/LICENSE-APACHE.md": "All of it",
        "snapshot/dataset_infos.json": json.dumps({"default": {"description": "of it"}}),
        "snapshot/.gitattributes": "x",
        "snapshot/.cache/huggingface/train.jsonl": json.dumps({"text": "copy"}),
        "snapshot/.ipynb_checkpoints/train-checkpoint.jsonl": json.dumps({"text": "copy"}),
        "snapshot/checkpoint-500/config.json": "{}",
        "snapshot/checkpoint-500/vocab.txt": "a",
        "snapshot/notes/readme_first.txt": "no document",
        "snapshot/notes/two.txt": "two",
    }
    for name, content in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(content, encoding="utf-8")
    (tmp_path / "snapshot" / "train.jsonl").symlink_to(tmp_path / "blobs" / "1")
    corpus = open_corpus(str(tmp_path / "snapshot"))
    assert list(corpus.documents()) == ["one", "two"]
    assert {reason.split(" (")[0]: count for reason, count in corpus.left_out.skipped.items()} == {
        "README or licence": 4,
        "description of a dataset": 1,
        "hidden file": 1,
        "hidden folder": 2,
        "folder of a model": 1,
    }
    assert read(tmp_path / "snapshot" / "README.md") == ["# A dataset"]  # asked for by its name


def test_parquet_rows_that_are_not_text_are_counted(tmp_path: Path) -> None:
    invalid = pa.Array.from_buffers(
        pa.string(), 1, [None, pa.array([0, 1], pa.int32()).buffers()[1], pa.py_buffer(b"\xe9")]
    )
    pq.write_table(pa.table({"text": pa.concat_arrays([pa.array(["a", None, "b"]), invalid])}), tmp_path / "a.parquet")
    corpus = open_corpus(str(tmp_path / "a.parquet"))
    with pytest.raises(InputError, match="1 of 3 documents"):
        list(corpus.documents())
    assert corpus.left_out.skipped == {"empty document (null)": 1, "not UTF-8": 1}
    assert corpus.left_out.examples["not UTF-8"] == "a.parquet:4"


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


def test_a_file_that_may_not_be_read_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a.txt").write_text("a", encoding="utf-8")

    def refuse(*_: object, **__: object) -> NoReturn:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "open", refuse)  # a chmod would not keep root out
    corpus = open_corpus(str(tmp_path))
    for read_it in (corpus.fingerprint, lambda: list(corpus.documents())):
        with pytest.raises(InputError, match=r"a.txt cannot be read \(Permission denied\)"):
            read_it()


def test_a_missing_path_is_an_error_with_a_way_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "books.jsonl").write_text("", encoding="utf-8")
    with pytest.raises(InputError, match=r"Did you mean .*books\.jsonl"):
        open_corpus(str(tmp_path / "boks.jsonl"))
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match="Did you mean 'python'"):
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
    with pytest.raises(InputError, match="1 of 3 documents"):
        list(corpus.documents())
    monkeypatch.setattr(corpus_base, "MOST_LOST", 0.5)
    assert list(corpus.documents()) == ["'''Good.'''\n", "# coding: latin-1\n# café\n"]
    assert corpus.left_out.skipped == {"not text in its declared encoding": 1}
    monkeypatch.setattr("sysconfig.get_path", lambda _: str(tmp_path / "gone"))
    with pytest.raises(InputError, match="no usable document in 'python'"):
        list(corpus.documents())
