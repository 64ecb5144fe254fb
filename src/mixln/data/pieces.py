"""Pieces of a corpus: runs of documents that are read, tokenised and stored together."""

from __future__ import annotations

from collections import deque
from collections.abc import Generator, Iterable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from itertools import chain, islice

import numpy as np

from mixln.data.corpus import Corpus, LeftOut, Part
from mixln.data.splitting import digest
from mixln.data.store import token_dtype
from mixln.data.workers import tokenized_batches
from mixln.errors import InputError
from mixln.models.encoding import DocumentEncoder, batches

_MAX_PIECE_CHARACTERS = 2_000_000
_MIN_PIECE_CHARACTERS = 65_536
_PIECES_PER_LIMIT = 32

_NO_TOKENS = "nothing left after the tokenizer's normalisation"


def piece_characters(max_tokens: int | None) -> int:
    """Characters after which a piece ends, at the end of a document; fewer if few tokens are wanted.

    Not a function of the number of workers: the pieces are the same whoever tokenises them.
    """
    if max_tokens is None:
        return _MAX_PIECE_CHARACTERS
    # at about four characters a token
    return min(max(4 * max_tokens // _PIECES_PER_LIMIT, _MIN_PIECE_CHARACTERS), _MAX_PIECE_CHARACTERS)


@dataclass
class Piece:
    """Documents that were read together, and what was left out among them; the lists have an entry a document.

    Attributes:
        part: The part of the corpus.
        number: The number of the piece in that part.
        left_out: What could not be used.
        is_last: Whether no piece of this part follows.
        duplicates: Documents left out because they are excluded.
        fragments: The text of each document, long ones in several fragments.
        places: Where each document stands.
        digests: `digest` of each.
        characters: Characters of each.
    """

    part: int
    number: int
    left_out: LeftOut
    is_last: bool = False
    duplicates: int = 0
    fragments: list[list[str]] = field(default_factory=list)
    places: list[str] = field(default_factory=list)
    digests: list[int] = field(default_factory=list)
    characters: list[int] = field(default_factory=list)


@dataclass(frozen=True)
class Documents:
    """Tokenised documents one after another.

    Attributes:
        tokens: Shape (tokens,), each document followed by its end-of-text token.
        lengths: Tokens of each document, shape (documents,).
        characters: Characters of each document, shape (documents,).
        digests: `digest` of each document, shape (documents,), uint64.
    """

    tokens: np.ndarray
    lengths: np.ndarray
    characters: np.ndarray
    digests: np.ndarray

    def where(self, chosen: np.ndarray) -> Documents:
        """The documents chosen by a mask of shape (documents,)."""
        tokens = self.tokens[np.repeat(chosen, self.lengths)]
        return Documents(tokens, self.lengths[chosen], self.characters[chosen], self.digests[chosen])


def read_pieces(
    corpus: Corpus,
    parts: list[Part],
    encoder: DocumentEncoder,
    excluded: frozenset[int],
    characters: int,
    start: tuple[int, int],
) -> Iterator[Piece]:
    """Yield the pieces of a corpus in order; a piece ends at the end of a document, or of a part of the corpus.

    Args:
        corpus: What to read.
        parts: What `corpus.parts()` gave.
        encoder: Says where a long document may be cut.
        excluded: Digests of documents to leave out.
        characters: Where a piece ends.
        start: Part and number of the first piece that is wanted; parts before it are not read.

    Raises:
        InputError: A document is too long to be tokenised (names it); or as `Corpus.read`.
    """

    def begin(part: int, number: int) -> Piece:
        corpus.left_out = LeftOut()  # which the corpus fills until the next piece begins
        return Piece(part, number, corpus.left_out)

    for part in range(start[0], len(parts)):
        piece, size = begin(part, 0), 0
        with closing(corpus.read(parts[part])) as documents:
            for text, place in documents:
                if size >= characters:
                    if (part, piece.number) >= start:
                        yield piece
                    piece, size = begin(part, piece.number + 1), 0
                size += len(text)
                if (part, piece.number) >= start:
                    _add(piece, text, place, encoder, excluded)
        if (part, piece.number) < start:
            raise InputError(
                f"corpus {corpus.name!r} changed since it was read: documents that were in it have gone; run the same "
                "command again when nothing writes to it"
            )
        piece.is_last = True
        yield piece


def _add(piece: Piece, text: str, place: str, encoder: DocumentEncoder, excluded: frozenset[int]) -> None:
    value = digest(text)
    if value in excluded:
        piece.duplicates += 1
        return
    with naming_document(place):
        piece.fragments.append(encoder.fragments(text))
    piece.places.append(place)
    piece.digests.append(value)
    piece.characters.append(len(text))


@contextmanager
def naming_document(place: str) -> Iterator[None]:
    """Say in an InputError which document it is about."""
    try:
        yield
    except InputError as error:
        raise InputError(f"{place}: {error}") from error


def tokenized(
    pieces: Iterable[Piece], encoder: DocumentEncoder, workers: int
) -> Generator[tuple[Piece, Documents], None, None]:
    """Yield each piece with its documents, tokenised by several processes; close the generator to stop them.

    Documents without a single token are counted as skipped.
    """
    read: deque[tuple[Piece, int]] = deque()  # with the number of its batches

    def texts() -> Iterator[list[str]]:
        for piece in pieces:
            found = list(batches(chain.from_iterable(piece.fragments))) or [[]]
            read.append((piece, len(found)))
            yield from found

    assert encoder.backend is not None  # `load_training_tokenizer` accepts no other
    with closing(tokenized_batches(texts(), encoder.backend, workers)) as results:
        for first in results:
            piece, count = read.popleft()
            encoded = [first, *islice(results, count - 1)]
            tokens, lengths = (np.concatenate(arrays) for arrays in zip(*encoded, strict=True))
            yield piece, _joined(piece, tokens, lengths, encoder)


def _joined(piece: Piece, tokens: np.ndarray, lengths: np.ndarray, encoder: DocumentEncoder) -> Documents:
    """Join fragments to documents, and put the tokens of the beginning and the end around each."""
    counts = np.array([len(fragments) for fragments in piece.fragments], dtype=np.int64)
    ends = np.append(0, np.cumsum(lengths))[np.cumsum(counts)]
    starts = np.append(0, ends)[:-1]
    kept = ends > starts
    for place in (place for place, whole in zip(piece.places, kept, strict=True) if not whole):
        piece.left_out.skip(_NO_TOKENS, place)
    assert encoder.eos_token_id is not None  # `load_training_tokenizer` accepts no other
    begin, end = list(encoder.begin), encoder.eos_token_id
    positions = np.column_stack([*[starts[kept]] * len(begin), ends[kept]])
    around = np.tile([*begin, end], (len(positions), 1))
    return Documents(
        np.insert(tokens.astype(token_dtype(encoder.vocab_size)), positions.ravel(), around.ravel()),
        (ends - starts)[kept] + len(begin) + 1,
        np.array(piece.characters, dtype=np.int64)[kept],
        np.array(piece.digests, dtype=np.uint64)[kept],
    )
