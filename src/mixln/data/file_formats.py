"""Files that hold text or JSON, plain or compressed: opened, read in rows, and refused where they are damaged."""

from __future__ import annotations

import bz2
import gzip
import io
import json
import lzma
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, cast

import pyarrow as pa

from mixln.errors import InputError

JSON_SUFFIXES = (".jsonl", ".json")


def _open_zstd(file: Path) -> IO[bytes]:
    stream: Any = pa.CompressedInputStream(pa.OSFile(str(file)), "zstd")
    return cast("IO[bytes]", io.BufferedReader(stream))


COMPRESSIONS: dict[str, Callable[[Path], Any]] = {
    ".gz": gzip.open,
    ".bz2": bz2.open,
    ".xz": lzma.open,
    ".zst": _open_zstd,
}
_DAMAGED = (gzip.BadGzipFile, EOFError, zlib.error, lzma.LZMAError, pa.ArrowInvalid)


@contextmanager
def naming_damage(file: Path) -> Iterator[None]:
    """A file that is cut off, damaged or not ours to read is refused, since nobody knows how much of it is lost."""
    try:
        yield
    except _DAMAGED as error:
        raise _damaged(file, error) from error
    except OSError as error:
        if error.errno is None:  # of a decompressor, not of the system
            raise _damaged(file, error) from error
        raise InputError(
            f"{file} cannot be read ({error.strerror or type(error).__name__}); remove it, or make it readable"
        ) from error


def _damaged(file: Path, error: BaseException) -> InputError:
    reason = next(iter(str(error).splitlines()), "") or type(error).__name__
    return InputError(f"{file} is damaged or cut off ({reason.rstrip('.')}); fetch it again, or remove it")


def is_json_file(file: Path) -> bool:
    """Whether a file holds JSON by its name, compressed or not."""
    name = file.name.lower()
    return name.endswith(JSON_SUFFIXES) or Path(name).stem.endswith(JSON_SUFFIXES)


def may_be_one_value(file: Path) -> bool:
    """Whether a JSON file begins as an array, or as an object that goes on in the next line."""
    with naming_damage(file), open_file(file) as stream:
        first = next((line for line in stream if line.strip()), b"")
    text = first.removeprefix(b"\xef\xbb\xbf").strip()
    return text.startswith(b"[") or text == b"{"


def one_value(file: Path) -> list[object] | None:
    """The rows of a JSON file that holds one array, or one object; None: it is no such file."""
    if not may_be_one_value(file):
        return None
    with open_file(file) as stream:
        content = stream.read()
    try:
        value: object = json.loads(content.decode("utf-8-sig"))
    except (ValueError, RecursionError):
        return None
    return cast("list[object]", value) if isinstance(value, list) else [value]


def open_file(file: Path) -> IO[bytes]:
    """Open a file for reading its content, whether it is compressed or not."""
    compression = COMPRESSIONS.get(file.suffix.lower())
    return file.open("rb") if compression is None else compression(file)


def read_rows(file: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield the JSON objects of a file, each with its place, `file:line` or `file, entry n`.

    One object a line, or one array of them; compressed or not. Blank lines are no rows. Unlike a corpus, of which a bad
    row can be left out, every row must be one.

    Raises:
        InputError: the file cannot be read or is damaged, or a row is not a JSON object.
    """
    if not file.is_file():
        raise InputError(f"{file} is not a file. Give a file of JSON lines")
    with naming_damage(file):
        rows = one_value(file)
        if rows is not None:
            for number, row in enumerate(rows, start=1):
                yield _as_row(row, f"{file}, entry {number}")
            return
        with open_file(file) as stream:
            for number, line in enumerate(stream, start=1):
                if line.strip():
                    place = f"{file}:{number}"
                    try:
                        row = json.loads(line.decode("utf-8-sig" if number == 1 else "utf-8"))
                    except (ValueError, RecursionError) as error:
                        raise InputError(f"{place} is not JSON ({error}). One object a line is expected") from error
                    yield _as_row(row, place)


def _as_row(row: object, place: str) -> tuple[str, dict[str, Any]]:
    if not isinstance(row, dict):
        raise InputError(f"{place} is not a JSON object, but {type(row).__name__}. Give an object with named fields")
    return place, cast("dict[str, Any]", row)
