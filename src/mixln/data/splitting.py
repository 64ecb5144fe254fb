"""Which documents are for training and which for validation, decided by their content."""

from __future__ import annotations

import hashlib
from collections.abc import Generator
from contextlib import closing
from dataclasses import dataclass

from mixln.data.corpus import Corpus
from mixln.errors import InputError

_HASH_SPACE = 2**64


def digest(document: str) -> int:
    """A 64-bit number that stands for the document's content, uniform over documents."""
    return int.from_bytes(hashlib.blake2b(document.encode(), digest_size=8).digest(), "big")


@dataclass(frozen=True)
class Split:
    """A document is for validation if its digest is below `threshold`; so equal documents land on the same side."""

    threshold: int

    def is_validation(self, document: str) -> bool:
        """True for validation, False for training."""
        return digest(document) < self.threshold

    def training_documents(self, corpus: Corpus) -> Generator[str, None, None]:
        """The training side of a corpus, lazily."""
        with closing(corpus.documents()) as documents:
            for document in documents:
                if not self.is_validation(document):
                    yield document


TRAINING_ONLY = Split(0)
"""For a corpus whose validation documents come from elsewhere."""


def choose_split(corpus: Corpus, validation_fraction: float) -> Split:
    """The split of a corpus whose validation side gets about `validation_fraction` of the documents.

    The threshold is validation_fraction * 2^64. Should that leave one side of a small corpus empty, the document with
    the smallest digest is moved to validation, or the one with the largest to training. The corpus is read only until
    both sides have a document.

    Raises:
        InputError: The corpus has one distinct document.
    """
    threshold = int(validation_fraction * _HASH_SPACE)
    smallest, largest = _HASH_SPACE, -1
    with closing(corpus.documents()) as documents:
        for document in documents:
            value = digest(document)
            smallest, largest = min(smallest, value), max(largest, value)
            if smallest < threshold <= largest:
                return Split(threshold)
    if smallest == largest:
        raise InputError(
            f"corpus {corpus.name!r} has a single distinct document, which cannot be for training and for validation; "
            "give a validation_corpus, or split the document (one JSON line for each part)"
        )
    return Split(largest if largest < threshold else smallest + 1)
