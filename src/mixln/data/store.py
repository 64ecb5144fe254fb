"""Token ids of many documents in files of bounded size, written as a stream and read by memory mapping."""

from __future__ import annotations

import zlib
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import IO, Any

import numpy as np

from mixln.errors import InputError

SHARD_TOKENS = 100_000_000
"""Tokens in every shard but the last: 200 or 400 MB."""

DOCUMENT_ENDS_FILE = "document_ends.npy"
_HEADER_BYTES = 128


def shard_file(number: int) -> str:
    """The name of a shard's file, from 0."""
    return f"tokens-{number:05d}.bin"


class TokenStore:
    """The tokens of one split, memory-mapped: nothing is read before it is used.

    On disk: `tokens-00000.bin`, `tokens-00001.bin`, ..., which are one flat sequence of little-endian uint16 or uint32,
    cut into equal parts (the last may be shorter), with every document followed by the end-of-text token;
    `document_ends.npy`, int64: entry d is the number of tokens up to the end of document d.

    Attributes:
        shards: The files' tokens, each uint16 or uint32.
        document_ends: Shape (documents,), increasing; the last entry is the number of tokens.
        eos_token_id: The end-of-text token.

    Raises:
        InputError: The files do not fit together.
    """

    def __init__(self, folder: str | Path, eos_token_id: int) -> None:
        self.folder = folder = Path(folder)
        self.eos_token_id = eos_token_id
        self.document_ends: np.ndarray[Any, np.dtype[np.int64]] = np.load(folder / DOCUMENT_ENDS_FILE, mmap_mode="r")
        self._count = int(self.document_ends[-1]) if len(self.document_ends) else 0
        files = sorted(folder.glob("tokens-*.bin"))
        sizes = [file.stat().st_size for file in files]
        dtype = {2 * self._count: np.dtype("<u2"), 4 * self._count: np.dtype("<u4")}.get(sum(sizes))
        is_whole = [file.name for file in files] == [shard_file(number) for number in range(len(files))]
        if dtype is None or not files or not is_whole or any(size != sizes[0] for size in sizes[:-1]):
            raise InputError(
                f"{folder} is damaged: files of {', '.join(map(str, sizes)) or 'no'} bytes cannot hold {self._count} "
                "tokens; delete it to prepare it anew"
            )
        self._shard_tokens = max(1, sizes[0] // dtype.itemsize)
        # A plain array over each map: numpy's memmap class makes every slice slow. An empty file cannot be mapped.
        self.shards: list[np.ndarray[Any, np.dtype[np.unsignedinteger]]] = (
            [np.asarray(np.memmap(file, dtype=dtype, mode="r")) for file in files]
            if self._count
            else [np.empty(0, dtype)]
        )

    def __len__(self) -> int:
        """Number of tokens."""
        return self._count

    @property
    def tokens(self) -> np.ndarray[Any, np.dtype[np.unsignedinteger]]:
        """All tokens, shape (tokens,); copied into memory unless they are one shard."""
        return self.shards[0] if len(self.shards) == 1 else np.concatenate(self.shards)

    def largest_token(self) -> int:
        """The largest id, that of the end of text (which fills rows up) among them; reads all tokens."""
        return max([self.eos_token_id, *(int(shard.max()) for shard in self.shards if len(shard))])

    def windows(self, starts: np.ndarray, length: int) -> np.ndarray:
        """The `length` tokens from each start on, wherever shards begin and end.

        Returns:
            Shape (starts, length), uint16 or uint32; end-of-text tokens where the store has ended.
        """
        result = np.full((len(starts), length), self.eos_token_id, dtype=self.shards[0].dtype)
        for row, start in zip(result, starts.tolist(), strict=True):
            number, offset = divmod(start, self._shard_tokens)
            filled = 0
            while filled < length and number < len(self.shards):
                part = self.shards[number][offset : offset + length - filled]
                row[filled : filled + len(part)] = part
                filled += len(part)
                number, offset = number + 1, 0
        return result


@dataclass
class Written:
    """What a `TokenStoreWriter` has written: once it is flushed to the disk, another one can go on from there.

    Attributes:
        tokens: Tokens written.
        documents: Documents written.
        checksum_of_tokens: CRC-32.
        checksum_of_ends: CRC-32 of the document ends.
    """

    tokens: int = 0
    documents: int = 0
    checksum_of_tokens: int = 0
    checksum_of_ends: int = 0


class TokenStoreWriter:
    """Writes a `TokenStore` as a stream, in constant memory; a context manager.

    Args:
        folder: Created if need be.
        vocab_size: One more than the largest id; decides on two or four bytes a token.
        shard_tokens: Tokens in every shard but the last; default `SHARD_TOKENS`.
        state: What an earlier writer has flushed to the folder, with the same arguments; what follows it is dropped.

    Attributes:
        written: So far.

    Raises:
        InputError: The folder does not hold what the state says.
    """

    def __init__(
        self, folder: str | Path, vocab_size: int, *, shard_tokens: int | None = None, state: Written | None = None
    ) -> None:
        self._folder = folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        self.written = state = state or Written()
        self._dtype = token_dtype(vocab_size)
        self._shard_tokens = shard_tokens or SHARD_TOKENS
        self._shards = max(1, -(-state.tokens // self._shard_tokens))
        if self._stored_checksums() != (state.checksum_of_tokens, state.checksum_of_ends):
            raise InputError(f"{folder} is damaged: it does not hold the {state.tokens} tokens that were written")
        for file in sorted(folder.glob("tokens-*.bin"))[self._shards :]:
            file.unlink()
        self._tokens = _open_at(folder / shard_file(self._shards - 1), self.shard_sizes[-1] * self._dtype.itemsize)
        self._ends = _open_at(folder / DOCUMENT_ENDS_FILE, _HEADER_BYTES + 8 * state.documents)
        if not state.documents:
            self._write_header()  # of no documents, which is not what the other files hold

    @property
    def shard_sizes(self) -> list[int]:
        """Tokens in each shard so far."""
        full = [self._shard_tokens] * (self._shards - 1)
        return [*full, self.written.tokens - sum(full)]

    def flush(self) -> None:
        """Hand to the system what was written, so that a kill loses nothing of it."""
        self._tokens.flush()
        self._ends.flush()

    def append(self, tokens: np.ndarray) -> None:
        """Add one document: shape (n,), n > 0, ids below `vocab_size`, its end-of-text token included."""
        self.extend(tokens, np.array([len(tokens)]))

    def extend(self, tokens: np.ndarray, lengths: np.ndarray) -> None:
        """Add documents.

        Args:
            tokens: Shape (n,), ids below `vocab_size`: the documents one after another, each with its end-of-text
                token.
            lengths: Tokens of each document, none of them 0, n in all.
        """
        assert tokens.ndim == 1
        assert len(tokens) == lengths.sum()
        assert (lengths > 0).all()
        written = self.written
        ends = (written.tokens + np.cumsum(lengths)).astype("<i8")
        while len(tokens):
            room = self._shards * self._shard_tokens - written.tokens
            if room == 0:
                self._tokens.close()
                self._shards += 1
                self._tokens = _open_at(self._folder / shard_file(self._shards - 1), 0)
                continue
            part, tokens = tokens[:room].astype(self._dtype), tokens[room:]
            self._tokens.write(part.data)
            written.checksum_of_tokens = zlib.crc32(part.data, written.checksum_of_tokens)
            written.tokens += len(part)
        written.documents += len(lengths)
        self._ends.write(ends.data)
        written.checksum_of_ends = zlib.crc32(ends.data, written.checksum_of_ends)

    def close(self) -> None:
        """Complete the files; until then they do not form a store."""
        try:
            self._write_header()
        finally:
            self._tokens.close()
            self._ends.close()

    def __enter__(self) -> TokenStoreWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if kind is None:
            self.close()
        else:  # leave it incomplete
            self._tokens.close()
            self._ends.close()

    def _stored_checksums(self) -> tuple[int, int] | None:
        """Those of the tokens and document ends that should be on the disk; None: they are not there."""
        of_tokens = of_ends = 0
        try:
            for number, size in enumerate(self.shard_sizes):
                if size:
                    shard = np.memmap(self._folder / shard_file(number), self._dtype, "r", 0, size)
                    of_tokens = zlib.crc32(shard.data, of_tokens)
            if self.written.documents:
                file = self._folder / DOCUMENT_ENDS_FILE
                of_ends = zlib.crc32(np.memmap(file, "<i8", "r", _HEADER_BYTES, self.written.documents).data)
        except (FileNotFoundError, ValueError):  # ValueError: a file is too short
            return None
        return of_tokens, of_ends

    def _write_header(self) -> None:
        # numpy pads the header so that the first dimension may grow in place, which is what lets us stream.
        header = {"descr": "<i8", "fortran_order": False, "shape": (self.written.documents,)}
        self._ends.seek(0)
        np.lib.format.write_array_header_1_0(self._ends, header)
        assert self._ends.tell() == _HEADER_BYTES


def _open_at(path: Path, size: int) -> IO[bytes]:
    """Open a file to write behind its first `size` bytes; drop what follows them."""
    path.touch()
    file = path.open("r+b")
    file.truncate(size)
    file.seek(size)
    return file


def token_dtype(vocab_size: int) -> np.dtype[np.unsignedinteger]:
    """Two bytes a token while they do, else four."""
    return np.dtype("<u2" if vocab_size <= np.iinfo(np.uint16).max else "<u4")
