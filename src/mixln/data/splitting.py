"""Which documents are for training and which for validation, decided by their content."""

from __future__ import annotations

import hashlib
from contextlib import closing

from mixln.data.corpus import Corpus
from mixln.errors import InputError

_HASH_SPACE = 2**64


def digest(document: str) -> int:
    """A 64-bit number that stands for the document's content, uniform over documents."""
    return int.from_bytes(hashlib.blake2b(document.encode(), digest_size=8).digest(), "big")


def is_in_share(text: str, share: float) -> bool:
    """Whether a text belongs to a share of all texts, by its digest: digest < share * 2^64."""
    return digest(text) < share * _HASH_SPACE


def choose_threshold(corpus: Corpus, validation_fraction: float) -> int:
    """The digest below which a document is for validation: about `validation_fraction` of the documents of a corpus.

    Equal documents land on the same side. The threshold is validation_fraction * 2^64. If that leaves one side of a
    small corpus empty, the document with the smallest digest is moved to validation, or the one with the largest to
    training. The corpus is read only until both sides have a document.

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
                return threshold
    if smallest == largest:
        raise InputError(
            f"corpus {corpus.name!r} has a single distinct document, which cannot be for training and for validation; "
            "give a validation_corpus, or split the document (one JSON line for each part)"
        )
    return largest if largest < threshold else smallest + 1
