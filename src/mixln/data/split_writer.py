"""Joining tokenised documents to one split, up to a limit."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from mixln.data.pieces import TokenizedDocuments
from mixln.data.store import TokenStoreWriter
from mixln.data.tokenizer import DocumentEncoder


@dataclass(frozen=True)
class SplitStatistics:
    """What one split holds.

    Attributes:
        documents: Documents, the last one possibly cut at the limit.
        characters: Characters of those documents (of one that is cut, those that its tokens decode to).
        tokens: Tokens, the end-of-text token of each document included.
    """

    documents: int
    characters: int
    tokens: int


class SplitWriter:
    """One split being written: tokenised documents in, tokens on disk, up to a limit.

    Args:
        writer: Where the tokens go.
        encoder: The tokenizer.
        max_tokens: Exactly here the split is cut, within a document if need be (no end-of-text token follows the
            cut); None for no limit.
    """

    def __init__(self, writer: TokenStoreWriter, encoder: DocumentEncoder, max_tokens: int | None) -> None:
        self._writer = writer
        self._encoder = encoder
        self._limit = math.inf if max_tokens is None else max_tokens
        self._characters = 0

    @property
    def tokens(self) -> int:
        """Tokens written so far."""
        return self._writer.num_tokens

    @property
    def full(self) -> bool:
        """True if no more tokens are wanted."""
        return self.tokens >= self._limit

    @property
    def statistics(self) -> SplitStatistics:
        """What was written so far."""
        return SplitStatistics(self._writer.num_documents, self._characters, self.tokens)

    @property
    def shard_sizes(self) -> list[int]:
        """Tokens in each file so far."""
        return self._writer.shard_sizes

    def add(self, documents: TokenizedDocuments) -> int:
        """Write documents as far as there is room.

        Returns:
            How many were written, the one that was cut included.
        """
        ends = np.cumsum(documents.lengths)
        room = self._limit - self.tokens
        count = int(np.searchsorted(ends, room, side="right"))  # documents that fit whole
        kept = int(ends[count - 1]) if count else 0
        self._write(documents.tokens[:kept], documents.lengths[:count], int(documents.characters[:count].sum()))
        if count == len(ends) or room == kept:
            return count
        cut = documents.tokens[kept : int(room)]
        whole = int(documents.characters[count])
        self._write(cut, np.array([len(cut)]), min(whole, self._encoder.decoded_characters(cut)))
        return count + 1

    def _write(self, tokens: np.ndarray, lengths: np.ndarray, characters: int) -> None:
        if len(lengths):
            self._writer.extend(tokens, lengths)
            self._characters += characters
