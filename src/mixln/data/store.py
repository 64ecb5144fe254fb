"""Token ids of many documents in flat files, written as a stream and read by memory mapping."""

from __future__ import annotations

from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np

from mixln.errors import InputError

TOKENS_FILE = "tokens.bin"
DOCUMENT_ENDS_FILE = "document_ends.npy"


class TokenStore:
    """The tokens of one split, memory-mapped: nothing is read before it is used.

    On disk: `tokens.bin`, flat little-endian uint16 or uint32, every document followed by the end-of-text token;
    `document_ends.npy`, int64: entry d is the number of tokens up to the end of document d.

    Attributes:
        tokens: Shape (tokens,), uint16 or uint32.
        document_ends: Shape (documents,), increasing; the last entry is the number of tokens.
        eos_token_id: The end-of-text token.

    Raises:
        InputError: The two files do not fit together.
    """

    def __init__(self, folder: Path, eos_token_id: int) -> None:
        self.folder = folder
        self.eos_token_id = eos_token_id
        self.document_ends: np.ndarray[Any, np.dtype[np.int64]] = np.load(folder / DOCUMENT_ENDS_FILE, mmap_mode="r")
        count = int(self.document_ends[-1]) if len(self.document_ends) else 0
        size = (folder / TOKENS_FILE).stat().st_size
        dtype = {2 * count: np.dtype("<u2"), 4 * count: np.dtype("<u4")}.get(size)
        if dtype is None:
            raise InputError(
                f"{folder} is damaged: {size} bytes cannot be {count} tokens; delete it to prepare it anew"
            )
        self.tokens: np.ndarray[Any, np.dtype[np.unsignedinteger]] = (
            # An empty file cannot be mapped.
            np.memmap(folder / TOKENS_FILE, dtype=dtype, mode="r") if count else np.empty(0, dtype)
        )

    def __len__(self) -> int:
        """Number of tokens."""
        return len(self.tokens)


class TokenStoreWriter:
    """Writes a `TokenStore` document by document, in constant memory; a context manager.

    Args:
        folder: Created if need be.
        vocab_size: One more than the largest id; decides on two or four bytes a token.

    Attributes:
        num_tokens: Tokens written so far.
        num_documents: Documents written so far.
    """

    def __init__(self, folder: Path, vocab_size: int) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.num_tokens = 0
        self.num_documents = 0
        self._dtype = np.dtype("<u2" if vocab_size <= np.iinfo(np.uint16).max else "<u4")
        self._tokens = (folder / TOKENS_FILE).open("wb")
        self._ends = (folder / DOCUMENT_ENDS_FILE).open("wb")
        self._write_header()

    def append(self, tokens: np.ndarray) -> None:
        """Add one document: shape (n,), n > 0, ids below `vocab_size`, its end-of-text token included."""
        assert tokens.ndim == 1
        assert len(tokens) > 0
        self._tokens.write(tokens.astype(self._dtype).tobytes())
        self.num_tokens += len(tokens)
        self.num_documents += 1
        self._ends.write(np.int64(self.num_tokens).astype("<i8").tobytes())

    def close(self) -> None:
        """Complete the files; until then they do not form a store."""
        try:
            self._ends.seek(0)
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

    def _write_header(self) -> None:
        # numpy pads the header so that the first dimension may grow in place, which is what lets us stream.
        header = {"descr": "<i8", "fortran_order": False, "shape": (self.num_documents,)}
        np.lib.format.write_array_header_1_0(self._ends, header)
