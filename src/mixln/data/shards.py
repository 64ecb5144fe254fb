"""Tokenising one split of a corpus in bounded batches."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass

import numpy as np

from mixln.data.splitting import digest
from mixln.data.store import TokenStoreWriter
from mixln.data.tokenizer import DocumentEncoder

# Whole documents of this many characters are tokenised at a time: enough to occupy the threads, and, at the hundred
# bytes that the tokenizers library holds for each token, well below 100 MB.
_BATCH_CHARACTERS = 2_000_000
# A split with a limit reads no more than it needs, by an estimate of characters for each token still missing.
_CHARACTERS_PER_TOKEN = 8
_MINIMUM_BATCH_CHARACTERS = 16_384

_NO_TOKENS = "nothing left after the tokenizer's normalisation"


@dataclass(frozen=True)
class SplitStatistics:
    """What one split holds.

    Attributes:
        documents: Documents, the last one possibly cut at the limit.
        characters: Characters of those documents (up to the cut).
        tokens: Tokens, the end-of-text token of each document included.
    """

    documents: int
    characters: int
    tokens: int


class Shard:
    """One split being written: documents in, tokens on disk, up to a limit.

    Args:
        writer: Where the tokens go.
        encoder: The tokenizer.
        max_tokens: Exactly here the split is cut, within a document if need be (no end-of-text token follows the
            cut); None for no limit.

        keep_digests: Remember which documents were written (in memory, so for a small split).

    Attributes:
        digests: If kept, `digest` of every document written.
        skipped: Reason -> documents that gave no tokens.
        examples: Reason -> how the first of them begins.
    """

    def __init__(
        self,
        writer: TokenStoreWriter,
        encoder: DocumentEncoder,
        max_tokens: int | None,
        *,
        keep_digests: bool = False,
    ) -> None:
        self.digests: set[int] = set()
        self.skipped: Counter[str] = Counter()
        self.examples: dict[str, str] = {}
        self._keep_digests = keep_digests
        self._writer = writer
        self._encoder = encoder
        self._limit = math.inf if max_tokens is None else max_tokens
        self._characters = 0
        self._pending: list[str] = []
        self._pending_characters = 0

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

    def add(self, document: str) -> None:
        """Take a document; it is tokenised when enough have come together. A full shard ignores it."""
        if self.full:
            return
        self._pending.append(document)
        self._pending_characters += len(document)
        wanted = max(_MINIMUM_BATCH_CHARACTERS, _CHARACTERS_PER_TOKEN * (self._limit - self.tokens))
        if self._pending_characters >= min(_BATCH_CHARACTERS, wanted):
            self.flush()

    def flush(self) -> None:
        """Tokenise and write what has come together."""
        documents, self._pending, self._pending_characters = self._pending, [], 0
        if self.full or not documents:
            return
        for document, ids in zip(documents, self._encoder.encode(documents), strict=True):
            if self.full:
                break
            self._write(document, ids)

    def _write(self, document: str, ids: np.ndarray) -> None:
        if len(ids) == 0:
            self.skipped[_NO_TOKENS] += 1
            self.examples.setdefault(_NO_TOKENS, repr(document[:40]))
            return
        tokens = np.append(ids, self._encoder.eos_token_id)
        characters = len(document)
        room = self._limit - self.tokens
        if len(tokens) > room:
            tokens = tokens[: int(room)]
            characters = self._encoder.characters(document, len(tokens))
        self._writer.append(tokens)
        self._characters += characters
        if self._keep_digests:
            self.digests.add(digest(document))
