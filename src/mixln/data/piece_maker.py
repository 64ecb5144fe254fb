"""Reading a corpus and tokenising it, a piece at a time."""

from __future__ import annotations

import hashlib
from collections.abc import Generator, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from mixln.data.corpus import Corpus, Part
from mixln.data.pieces import Piece, PieceHeader, PieceKey, TokenizedDocuments, write_piece
from mixln.data.splitting import Split, digest
from mixln.data.store import token_dtype
from mixln.data.tokenizer import DocumentEncoder

# Whole documents of this many characters are tokenised at a time: enough to occupy the threads, and, at the hundred
# bytes that the tokenizers library holds for each token, well below 100 MB.
_BATCH_CHARACTERS = 2_000_000

_NO_TOKENS = "nothing left after the tokenizer's normalisation"


@dataclass(frozen=True)
class PieceJob:
    """All that a process needs to make any piece of a corpus.

    Attributes:
        corpus: Documents.
        parts: What `corpus.parts()` gave.
        encoder: Tokenizer.
        split: Which documents are for validation.
        excluded: Digests of documents to leave out.
        piece_characters: Where a piece ends.
        folder: Where pieces are stored.
    """

    corpus: Corpus
    parts: list[Part]
    encoder: DocumentEncoder
    split: Split
    excluded: frozenset[int]
    piece_characters: int
    folder: Path

    def plan(self) -> dict[str, object]:
        """What the pieces of a folder depend on beyond the content of the corpus."""
        return {
            "parts": len(self.parts),
            "piece_characters": self.piece_characters,
            "threshold": self.split.threshold,
            "excluded": hashlib.sha256(repr(sorted(self.excluded)).encode()).hexdigest(),
            "encoder": hashlib.sha256(repr(self.encoder.__getstate__()).encode()).hexdigest(),
        }


class PieceMaker:
    """Makes the pieces of a job and stores them; quickest for pieces of one part in rising order."""

    def __init__(self, job: PieceJob) -> None:
        self._job = job
        self._cursor: _Cursor | None = None

    def make(self, key: PieceKey) -> PieceHeader | int:
        """Tokenise and store a piece.

        Returns:
            What was stored, or the number of pieces that the part has if this is not one of them.
        """
        cursor = self._cursor
        if cursor is None or cursor.part != key.part or cursor.number > key.number:
            self.close()
            cursor = self._cursor = _Cursor(self._job, key.part)
        while cursor.number < key.number and not cursor.ended:
            for _ in cursor.documents():
                pass
        if cursor.ended:
            return cursor.number
        builder = _Builder(self._job)
        for document in cursor.documents():
            builder.add(document)
        return write_piece(self._job.folder / key.file, builder.finish(is_last=cursor.ended))

    def close(self) -> None:
        """Stop reading."""
        if self._cursor is not None:
            self._cursor.close()
        self._cursor = None


class _Cursor:
    """The documents of one part, a piece at a time."""

    def __init__(self, job: PieceJob, part: int) -> None:
        self.part = part
        self.number = 0  # of the next piece
        self.ended = False
        self._corpus = job.corpus
        self._stream: Generator[str, None, None] = job.corpus.read(job.parts[part])
        self._limit = job.piece_characters

    def documents(self) -> Iterator[str]:
        """Those of the next piece; the corpus counts what is skipped in it."""
        self._corpus.reset_counts()
        self.number += 1
        characters = 0
        for document in self._stream:
            yield document
            characters += len(document)
            if characters >= self._limit:
                return
        self.ended = True

    def close(self) -> None:
        self._stream.close()


class _Builder:
    """Collects the documents of a piece."""

    def __init__(self, job: PieceJob) -> None:
        self._job = job
        self._train = _Side(job.encoder)
        self._validation = _Side(job.encoder)
        self._duplicates = 0

    def add(self, document: str) -> None:
        value = digest(document)
        if value in self._job.excluded:
            self._duplicates += 1
        else:
            (self._validation if value < self._job.split.threshold else self._train).add(document, value)

    def finish(self, *, is_last: bool) -> Piece:
        train, validation = self._train.finish(), self._validation.finish()
        corpus = self._job.corpus
        skipped, examples = dict(corpus.skipped), dict(corpus.examples)
        for side in (self._train, self._validation):
            if side.empty:
                skipped[_NO_TOKENS] = skipped.get(_NO_TOKENS, 0) + len(side.empty)
                examples.setdefault(_NO_TOKENS, repr(side.empty[0][:40]))
        return Piece(train, validation, self._duplicates, skipped, examples, is_last)


class _Side:
    """Training or validation documents of a piece."""

    def __init__(self, encoder: DocumentEncoder) -> None:
        self.empty: list[str] = []  # documents that gave no tokens
        self._encoder = encoder
        self._dtype = token_dtype(encoder.vocab_size)
        self._pending: list[tuple[str, int]] = []
        self._pending_characters = 0
        self._tokens: list[np.ndarray] = [np.empty(0, self._dtype)]
        self._lengths: list[int] = []
        self._characters: list[int] = []
        self._digests: list[int] = []

    def add(self, document: str, value: int) -> None:
        self._pending.append((document, value))
        self._pending_characters += len(document)
        if self._pending_characters >= _BATCH_CHARACTERS:
            self._flush()

    def _flush(self) -> None:
        pending, self._pending, self._pending_characters = self._pending, [], 0
        encoded = self._encoder.encode([document for document, _ in pending]) if pending else []
        for (document, value), ids in zip(pending, encoded, strict=True):
            if len(ids) == 0:
                self.empty.append(document)
                continue
            self._tokens.append(np.append(ids, self._encoder.eos_token_id).astype(self._dtype))
            self._lengths.append(len(ids) + 1)
            self._characters.append(len(document))
            self._digests.append(value)

    def finish(self) -> TokenizedDocuments:
        self._flush()
        return TokenizedDocuments(
            np.concatenate(self._tokens),
            np.array(self._lengths, dtype=np.int64),
            np.array(self._characters, dtype=np.int64),
            np.array(self._digests, dtype=np.uint64),
        )
