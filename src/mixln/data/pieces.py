"""Pieces of a corpus: runs of documents that are tokenised, stored and checked by themselves; their files."""

from __future__ import annotations

import hashlib
import io
import json
import os
from dataclasses import asdict, dataclass, fields
from pathlib import Path

import numpy as np

_MAX_PIECE_CHARACTERS = 8_000_000
_MIN_PIECE_CHARACTERS = 65_536
_PIECES_PER_LIMIT = 32


def piece_characters(max_tokens: int | None) -> int:
    """Characters after which a piece ends, at the end of a document; fewer if few tokens are wanted.

    Not a function of the number of workers: the pieces are the same whoever tokenises them.
    """
    if max_tokens is None:
        return _MAX_PIECE_CHARACTERS
    # at about four characters a token
    return min(max(4 * max_tokens // _PIECES_PER_LIMIT, _MIN_PIECE_CHARACTERS), _MAX_PIECE_CHARACTERS)


@dataclass(frozen=True)
class PieceKey:
    """Where a piece stands: pieces in the order of their keys are the corpus."""

    part: int
    number: int

    @property
    def file(self) -> str:
        """Name of its file."""
        return f"{self.part:06d}-{self.number:06d}.piece"


@dataclass(frozen=True)
class PieceHeader:
    """What is known of a stored piece without reading it.

    Attributes:
        is_last: No piece of this part follows.
        tokens: Training tokens.
        sha256: Of everything after the header.
    """

    is_last: bool
    tokens: int
    sha256: str


@dataclass(frozen=True)
class TokenizedDocuments:
    """Documents one after another.

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


@dataclass(frozen=True)
class Piece:
    """A tokenised piece.

    Attributes:
        train: Documents of the training side.
        validation: Documents of the validation side.
        duplicates: Documents left out because they are excluded.
        skipped: Reason -> number of what could not be used.
        examples: Reason -> first place.
        is_last: No piece of this part follows.
    """

    train: TokenizedDocuments
    validation: TokenizedDocuments
    duplicates: int
    skipped: dict[str, int]
    examples: dict[str, str]
    is_last: bool


def write_piece(path: Path, piece: Piece) -> PieceHeader:
    """Store a piece in one step: a line of JSON (`PieceHeader`), then an .npz."""
    arrays = {
        f"{side}_{field.name}": getattr(getattr(piece, side), field.name)
        for side in ("train", "validation")
        for field in fields(TokenizedDocuments)
    }
    counts = {"duplicates": piece.duplicates, "skipped": piece.skipped, "examples": piece.examples}
    stream = io.BytesIO()
    np.savez(stream, **arrays, counts=np.frombuffer(json.dumps(counts).encode(), dtype=np.uint8))
    content = stream.getvalue()
    header = PieceHeader(piece.is_last, len(piece.train.tokens), hashlib.sha256(content).hexdigest())
    # Another name until it is whole; our own, because a worker of a killed process may still be at the same piece.
    temporary = path.with_suffix(f".{os.getpid()}.tmp")
    try:
        with temporary.open("wb") as file:
            file.write(json.dumps(asdict(header)).encode() + b"\n")
            file.write(content)
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    return header


def read_header(path: Path) -> PieceHeader | None:
    """The header of a stored piece, or None if there is none, or none that can be read."""
    try:
        with path.open("rb") as file:
            return PieceHeader(**json.loads(file.readline()))
    except (FileNotFoundError, ValueError, TypeError):
        return None


def read_piece(path: Path) -> Piece | None:
    """A stored piece, or None if it is damaged or gone."""
    header = read_header(path)
    if header is None:
        return None
    with path.open("rb") as file:
        file.readline()
        content = file.read()
    if hashlib.sha256(content).hexdigest() != header.sha256:
        return None
    with np.load(io.BytesIO(content)) as arrays:
        train, validation = (
            TokenizedDocuments(*(arrays[f"{side}_{field.name}"] for field in fields(TokenizedDocuments)))
            for side in ("train", "validation")
        )
        counts = json.loads(arrays["counts"].tobytes())
    return Piece(train, validation, **counts, is_last=header.is_last)
