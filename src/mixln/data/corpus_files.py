"""Documents from local files: plain text, JSON lines (both also gzipped) and Parquet."""

from __future__ import annotations

import gzip
import hashlib
import json
import os
import zlib
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import IO, cast

import pyarrow as pa
import pyarrow.parquet as pq

from mixln.data.corpus import Corpus, Part
from mixln.errors import InputError

TEXT_SUFFIXES = (".txt", ".md", ".txt.gz", ".md.gz")
JSON_SUFFIXES = (".jsonl", ".json", ".jsonl.gz", ".json.gz")
PARQUET_SUFFIXES = (".parquet",)
SUFFIXES = TEXT_SUFFIXES + JSON_SUFFIXES + PARQUET_SUFFIXES

_PART_BYTES = 32_000_000
_CORRUPT_GZIP = "corrupt gzip data (the rest of the file is lost)"


class FileCorpus(Corpus):
    """One file, or every file of a known suffix in a folder and its subfolders, sorted by path.

    A text file (.txt, .md) is one document, taken as it is but for a byte order mark. JSON-lines files (.jsonl, .json;
    one object a line) and Parquet files give one document a row, from the field `text_field`. Text and JSON lines may
    be gzipped (.gz). Links are followed. One row (Parquet: one batch of rows) is in memory at a time.

    Raises:
        InputError: `path` is a file of an unknown suffix, or neither file nor folder; or, while reading, a Parquet
            file has no column `text_field`, or nothing at all is usable.
    """

    def __init__(self, path: Path, text_field: str) -> None:
        super().__init__(str(path))
        self.path = path
        self.text_field = text_field
        if path.is_file():
            if not path.name.lower().endswith(SUFFIXES):
                raise InputError(f"{path}: unknown kind of file; known suffixes are {', '.join(SUFFIXES)}")
        elif not path.is_dir():
            raise InputError(f"{path} is neither a file nor a folder; save the documents to a file first")

    def fingerprint(self) -> str:
        """sha256 over `text_field` and the relative path and bytes of every file, in order."""
        digest = hashlib.sha256(f"files\0{self.text_field}".encode())
        for file, relative in self._files():
            digest.update(b"\0" + os.fsencode(relative) + b"\0")
            try:
                with file.open("rb") as stream:
                    digest.update(hashlib.file_digest(stream, "sha256").digest())
            except OSError:
                digest.update(b"unreadable")
        return digest.hexdigest()

    def _files(self) -> Iterator[tuple[Path, str]]:
        """Yield (file, relative path) of known suffixes; everything else in a folder is counted as skipped."""
        if self.path.is_file():
            yield self.path, self.path.name
            return
        visited: set[str] = set()  # a link to a parent folder must not send us round in circles
        walk = os.walk(
            self.path, followlinks=True, onerror=lambda error: self._skip("unreadable folder", str(error.filename))
        )
        for folder, subfolders, names in walk:
            real = os.path.realpath(folder)
            if real in visited:
                subfolders.clear()
                self._skip("folder linked a second time", folder)
                continue
            visited.add(real)
            subfolders.sort()
            for name in sorted(names):
                file = Path(folder, name)
                relative = file.relative_to(self.path).as_posix()
                if not name.lower().endswith(SUFFIXES):
                    self._skip(f"unknown suffix (known: {' '.join(SUFFIXES)})", relative)
                elif not file.is_file():
                    # Opening a pipe would wait for ever.
                    self._skip("not a regular file, or a broken link", relative)
                else:
                    yield file, relative

    def parts(self) -> list[Part]:
        """Files, in order; small ones that follow each other go together."""
        self.reset_counts()
        parts: list[list[tuple[Path, str]]] = [[]]
        size = 0
        for file, relative in self._files():
            if size >= _PART_BYTES:
                parts.append([])
                size = 0
            parts[-1].append((file, relative))
            try:
                size += file.stat().st_size
            except OSError:  # counted when it is read
                continue
        return parts

    def _read(self, part: Part) -> Iterator[tuple[str, str]]:
        for file, relative in cast("list[tuple[Path, str]]", part):
            name = file.name.lower()
            try:
                if name.endswith(PARQUET_SUFFIXES):
                    yield from self._read_parquet(file, relative)
                elif name.endswith(JSON_SUFFIXES):
                    yield from self._read_json_lines(file, relative)
                else:
                    yield from self._read_text(file, relative)
            except (gzip.BadGzipFile, EOFError, zlib.error):
                self._skip(_CORRUPT_GZIP, relative)
            except OSError as error:
                self._skip(f"unreadable file ({error.strerror or type(error).__name__})", relative)

    def _read_text(self, file: Path, place: str) -> Iterator[tuple[str, str]]:
        with _open(file) as stream:
            content = stream.read()
        try:
            text = content.decode("utf-8-sig")
        except UnicodeDecodeError:
            self._skip("not UTF-8", place)
        else:
            yield text, place

    def _read_json_lines(self, file: Path, relative: str) -> Iterator[tuple[str, str]]:
        with _open(file) as stream:
            for number, line in enumerate(stream, start=1):
                if not line.strip():
                    continue  # a blank line is no record
                place = f"{relative}:{number}"
                try:
                    row: object = json.loads(line.decode("utf-8-sig" if number == 1 else "utf-8"))
                except UnicodeDecodeError:
                    self._skip("not UTF-8", place)
                except (ValueError, RecursionError):
                    self._skip("bad JSON (one object a line is expected)", place)
                else:
                    yield from self._field(row, place)

    def _field(self, row: object, place: str) -> Iterator[tuple[str, str]]:
        if not isinstance(row, dict):
            self._skip("not a JSON object", place)
        elif self.text_field not in row:
            fields = ", ".join(map(str, row)) or "none"
            self._skip(f"no field {self.text_field!r}", f"{place}, whose fields are: {fields}")
        elif not isinstance(text := cast("dict[str, object]", row)[self.text_field], str):
            self._skip(f"field {self.text_field!r} is not a string", place)
        else:
            yield text, place

    def _read_parquet(self, file: Path, relative: str) -> Iterator[tuple[str, str]]:
        try:
            with closing(pq.ParquetFile(file)) as parquet:
                columns: list[str] = parquet.schema_arrow.names
                if self.text_field not in columns:
                    raise InputError(
                        f"{file}: no column {self.text_field!r}; set text_field to one of: {', '.join(columns)}"
                    )
                number = 0
                for batch in parquet.iter_batches(batch_size=1024, columns=[self.text_field]):
                    for value in batch.column(0):
                        number += 1
                        place = f"{relative}:{number}"
                        try:
                            text: object = value.as_py()
                        except UnicodeDecodeError:
                            self._skip("not UTF-8", place)
                            continue
                        if isinstance(text, str):
                            yield text, place
                        else:
                            self._skip(f"field {self.text_field!r} is not a string", place)
        except pa.ArrowInvalid:
            self._skip("corrupt Parquet data (the rest of the file is lost)", relative)


def _open(file: Path) -> IO[bytes]:
    return cast("IO[bytes]", gzip.open(file)) if file.name.lower().endswith(".gz") else file.open("rb")
