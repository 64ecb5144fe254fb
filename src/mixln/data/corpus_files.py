"""Documents from local files: plain text, JSON and Parquet."""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import cast

import pyarrow.parquet as pq

from mixln.data.corpus import Corpus, LeftOut, Part
from mixln.data.file_formats import (
    COMPRESSIONS,
    JSON_SUFFIXES,
    is_json_file,
    may_be_one_value,
    naming_damage,
    one_value,
    open_file,
)
from mixln.errors import InputError

_TEXT, _PARQUET = (".txt", ".md"), (".parquet",)
_COMPRESSED = tuple(f"{kind}{compression}" for kind in (*_TEXT, *JSON_SUFFIXES) for compression in COMPRESSIONS)
SUFFIXES = (*_TEXT, *JSON_SUFFIXES, *_COMPRESSED, *_PARQUET)
_SHOWN = f"{' '.join((*_TEXT, *JSON_SUFFIXES, *_PARQUET))}; the first four also with {' '.join(COMPRESSIONS)}"

_ACCOMPANYING = frozenset({"readme", "license", "licence", "copying", "notice", "citation"})
_DESCRIPTIONS = frozenset({"dataset_info.json", "dataset_infos.json", "dataset_dict.json", "state.json"})
"""What `datasets` writes beside the data."""

_MODEL_FILES = frozenset({"config.json", "tokenizer.json", "tokenizer_config.json", "adapter_config.json"})
"""A folder with one of these holds a model or a checkpoint of one."""

_PART_BYTES = 32_000_000


class FileCorpus(Corpus):
    """One file, or the documents of a folder and its subfolders, sorted by path.

    A text file (.txt, .md) is one document, taken as it is but for a byte order mark. JSON files (.jsonl, .json) hold
    one object a line, or all of them in one array; they and Parquet files give one document a row, from the field
    `text_field`. Text and JSON may be compressed (.gz, .bz2, .xz, .zst). One row (Parquet: one batch of rows; a JSON
    array: the file) is in memory at a time.

    In a folder, these are no documents: hidden files and folders (a hub's cache, copies that
    notebooks keep), files named README, LICENSE and the like, the descriptions that `datasets` writes, folders of
    models. Links are followed; a file or folder that is linked a second time counts once. All of these are counted as
    skipped. A file that is given by its own name is read, whatever it is called.

    Raises:
        InputError: `path` is a file of an unknown suffix, or neither file nor folder; or, while reading, a file is
            damaged, cut off or cannot be opened, a Parquet file has no column `text_field`, or nothing at all is
            usable.
    """

    def __init__(self, path: Path, text_field: str) -> None:
        super().__init__(str(path))
        self.path = path
        self.text_field = text_field
        if path.is_file():
            if not path.name.lower().endswith(SUFFIXES):
                raise InputError(f"{path}: unknown kind of file; known suffixes are {_SHOWN}")
        elif not path.is_dir():
            raise InputError(f"{path} is neither a file nor a folder; save the documents to a file first")

    def fingerprint(self) -> str:
        """sha256 over `text_field` and the relative path and bytes of every file, in order."""
        digest = hashlib.sha256(f"files\0{self.text_field}".encode())
        for file, relative in self._files():
            digest.update(b"\0" + os.fsencode(relative) + b"\0")
            with naming_damage(file), file.open("rb") as stream:
                digest.update(hashlib.file_digest(stream, "sha256").digest())
            if is_json_file(file) and may_be_one_value(file):
                digest.update(b"one value")  # which older versions read as lines
        return digest.hexdigest()

    def _files(self) -> Iterator[tuple[Path, str]]:
        """Yield (file, relative path) of documents; everything else in a folder is counted as skipped."""
        if self.path.is_file():
            yield self.path, self.path.name
            return
        visited: set[str] = set()  # a link to a parent folder must not send us round in circles
        for folder, subfolders, names in os.walk(self.path, followlinks=True, onerror=_raise_unreadable):
            place = Path(folder).relative_to(self.path).as_posix()
            real = os.path.realpath(folder)
            if real in visited or (place != "." and not _MODEL_FILES.isdisjoint(names)):
                subfolders.clear()
                self._skip("folder linked a second time" if real in visited else "folder of a model", place)
                continue
            visited.add(real)
            for name in [name for name in subfolders if name.startswith(".")]:
                subfolders.remove(name)
                self._skip("hidden folder", (Path(place) / name).as_posix())
            subfolders.sort()
            for name in sorted(names):
                file = Path(folder, name)
                relative = file.relative_to(self.path).as_posix()
                if reason := self._not_a_document(file, visited):
                    self._skip(reason, relative)
                else:
                    visited.add(os.path.realpath(file))
                    yield file, relative

    def _not_a_document(self, file: Path, visited: set[str]) -> str | None:
        """Why a file of a folder holds no document of its own; None: it does."""
        name = file.name.lower()
        if name.startswith("."):
            return "hidden file"
        if re.split(r"[^a-z]", name, maxsplit=1)[0] in _ACCOMPANYING:
            return "README or licence (give it by its own name to read it)"
        if name in _DESCRIPTIONS:
            return "description of a dataset"
        if not name.endswith(SUFFIXES):
            if Path(name).stem.endswith((*_TEXT, *JSON_SUFFIXES)):
                raise InputError(f"{file} has a kind of compression that cannot be read; known suffixes are {_SHOWN}")
            return f"unknown suffix (known: {_SHOWN})"
        if file.is_symlink() and not file.exists():
            raise InputError(f"{file} is a link to {file.readlink()}, which is not there; fetch it, or remove the link")
        if not file.is_file():
            return "not a regular file"  # opening a pipe would wait for ever
        return "file linked a second time" if os.path.realpath(file) in visited else None

    def parts(self) -> list[Part]:
        """Files, in order; small ones that follow each other go together."""
        self.left_out = LeftOut()
        parts: list[list[tuple[Path, str]]] = [[]]
        size = 0
        for file, relative in self._files():
            if size >= _PART_BYTES:
                parts.append([])
                size = 0
            parts[-1].append((file, relative))
            with naming_damage(file):
                size += file.stat().st_size
        return parts

    def _read(self, part: Part) -> Iterator[tuple[str, str]]:
        for file, relative in cast("list[tuple[Path, str]]", part):
            with naming_damage(file):
                if file.name.lower().endswith(_PARQUET):
                    yield from self._read_parquet(file, relative)
                elif is_json_file(file):
                    yield from self._read_json(file, relative)
                else:
                    yield from self._read_text(file, relative)

    def _read_text(self, file: Path, place: str) -> Iterator[tuple[str, str]]:
        with open_file(file) as stream:
            content = stream.read()
        try:
            text = content.decode("utf-8-sig")
        except UnicodeDecodeError:
            self._lose("not UTF-8", place)
        else:
            yield text, place

    def _read_json(self, file: Path, relative: str) -> Iterator[tuple[str, str]]:
        rows = one_value(file)
        if rows is not None:
            for number, row in enumerate(rows, start=1):
                yield from self._field(row, f"{relative}, entry {number}")
            return
        with open_file(file) as stream:
            for number, line in enumerate(stream, start=1):
                if not line.strip():
                    continue  # a blank line is no record
                place = f"{relative}:{number}"
                try:
                    row: object = json.loads(line.decode("utf-8-sig" if number == 1 else "utf-8"))
                except UnicodeDecodeError:
                    self._lose("not UTF-8", place)
                except (ValueError, RecursionError):
                    self._lose("bad JSON (one object a line, or one array, is expected)", place)
                else:
                    yield from self._field(row, place)

    def _field(self, row: object, place: str) -> Iterator[tuple[str, str]]:
        if not isinstance(row, dict):
            self._lose("not a JSON object", place)
        elif self.text_field not in row:
            fields = ", ".join(map(str, row)) or "none"
            self._lose(f"no field {self.text_field!r}", f"{place}, whose fields are: {fields}")
        else:
            yield from self._text(cast("dict[str, object]", row)[self.text_field], self.text_field, place)

    def _read_parquet(self, file: Path, relative: str) -> Iterator[tuple[str, str]]:
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
                        self._lose("not UTF-8", place)
                    else:
                        yield from self._text(text, self.text_field, place)


def _raise_unreadable(error: OSError) -> None:
    raise InputError(
        f"the folder {error.filename} cannot be read ({error.strerror or type(error).__name__}); remove it, or make it "
        "readable"
    ) from error
