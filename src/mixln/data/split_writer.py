"""One split of a corpus while it is written, up to a limit."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from mixln.data.pieces import Documents
from mixln.data.store import TokenStoreWriter, Written
from mixln.models.encoding import DocumentEncoder


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
    """One split: tokenised documents in, tokens on disk, up to a limit.

    Args:
        folder: The folder of the token store.
        encoder: The tokenizer.
        max_tokens: Exactly here the split is cut, within a document if need be (no end-of-text token follows the
            cut); None for no limit.
        state: What `flush` of an earlier writer has returned, to go on from there.

    Attributes:
        store: The writer of the token store, to be closed by whoever opened this one.

    Raises:
        InputError: The folder does not hold what the state says.
    """

    def __init__(
        self, folder: Path, encoder: DocumentEncoder, max_tokens: int | None, state: dict[str, int] | None
    ) -> None:
        of_store = dict(state or {})
        self._characters = of_store.pop("characters", 0)
        self.store = TokenStoreWriter(folder, encoder.vocab_size, state=Written(**of_store))
        self._encoder = encoder
        self._limit = math.inf if max_tokens is None else max_tokens

    @property
    def full(self) -> bool:
        """True if no more tokens are wanted."""
        return self.store.written.tokens >= self._limit

    @property
    def statistics(self) -> SplitStatistics:
        """What was written so far."""
        return SplitStatistics(self.store.written.documents, self._characters, self.store.written.tokens)

    def add(self, documents: Documents) -> int:
        """Write documents as far as there is room.

        Returns:
            How many were written, the one that was cut included.
        """
        ends = np.cumsum(documents.lengths)
        room = int(min(self._limit - self.store.written.tokens, len(documents.tokens)))
        count = int(np.searchsorted(ends, room, side="right"))  # documents that fit whole
        tokens, lengths = documents.tokens[:room], documents.lengths[:count]
        self._characters += int(documents.characters[:count].sum())
        if cut := room - int(lengths.sum()):
            decoded = self._encoder.decoded_characters(tokens[-cut:])
            self._characters += min(int(documents.characters[count]), decoded)
            lengths = np.append(lengths, cut)
        self.store.extend(tokens, lengths)
        return len(lengths)

    def flush(self) -> dict[str, int]:
        """Hand to the system what was written, and return what another writer needs to go on from there."""
        self.store.flush()
        return {"characters": self._characters, **asdict(self.store.written)}
