"""What every source of documents has in common."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Generator, Iterator, Mapping
from contextlib import closing
from itertools import islice
from typing import Any

from mixln.errors import InputError

MOST_LOST = 0.01
"""The share of its documents that a corpus may lose before it is refused."""

NO_TEXT = "empty document (null)"

Part = Any
"""A stretch of a corpus that can be read by itself: whatever its corpus makes of it."""


class Corpus(ABC):
    """A source of documents that is read lazily, and that counts what it could not use.

    What is left out has a reason and a first place. Some of it is lost: documents that are there and cannot be read
    (bad JSON, no such field, not UTF-8). Of these there may be 1 % (`MOST_LOST`), and no file may be damaged. The rest
    was no document, or an empty one.

    `documents()` may be called again; each call starts from the beginning and resets the counts. It is the same as
    `read` of every one of `parts()`, in order.

    Attributes:
        name: What the user called the corpus; for messages.
        unbounded: True if reading to the end may take terabytes (a streamed hub dataset).
        skipped: Reason -> number of pieces (files, rows, documents) left out, filled while documents are read.
        examples: Reason -> the first place where it occurred (`file`, `file:line` or `file:row`).
        lost: How many of the skipped are documents that could not be read.
    """

    unbounded: bool = False

    def __init__(self, name: str) -> None:
        self.name = name
        self.skipped: Counter[str] = Counter()
        self.examples: dict[str, str] = {}
        self.lost = 0

    @abstractmethod
    def fingerprint(self) -> str:
        """A key of the content: equal fingerprints mean equal documents in equal order."""

    @abstractmethod
    def parts(self) -> list[Part]:
        """What can be read independently, in order; resets the counts."""

    @abstractmethod
    def _read(self, part: Part) -> Iterator[tuple[str, str]]:
        """Yield (text, place); what cannot be read goes through `_skip`."""

    def read(self, part: Part) -> Generator[tuple[str, str], None, None]:
        """Yield the usable documents of one part, each with its place, and count the others."""
        for text, place in self._read(part):
            if not text or text.isspace():
                self._skip("empty document", place)
            elif not _is_unicode(text):
                self._lose("lone surrogate (not Unicode text)", place)
            else:
                yield text, place

    def documents(self) -> Generator[str, None, None]:
        """Yield the usable documents, as `placed_documents`, without their places."""
        with closing(self.placed_documents()) as documents:
            for text, _ in documents:
                yield text

    def placed_documents(self) -> Generator[tuple[str, str], None, None]:
        """Yield the usable documents and their places: not empty, and encodable as UTF-8 (no lone surrogates).

        Raises:
            InputError: The end was reached without a single usable document, or more are lost than may be; or a file
                is damaged.
        """
        usable = 0
        for part in self.parts():
            for document in self.read(part):
                usable += 1
                yield document
        self._check(usable)

    def first(self, count: int) -> list[str]:
        """The first so many usable documents; what was left out until then is counted.

        Raises:
            InputError: As `documents`, of what was read.
        """
        with closing(self.documents()) as documents:
            texts = list(islice(documents, count))
        self._check(len(texts))
        return texts

    def _check(self, usable: int) -> None:
        if usable == 0:
            raise InputError(nothing_usable(self.name, self.skipped, self.examples))
        check_lost(self.name, self.lost, usable, self.skipped, self.examples)

    def reset_counts(self) -> None:
        """Forget what was skipped."""
        self.skipped.clear()
        self.examples.clear()
        self.lost = 0

    def describe_skipped(self) -> str:
        """The counts in one line, most frequent first; empty if nothing was skipped."""
        return describe_skipped(self.skipped, self.examples)

    def _lose(self, reason: str, place: str) -> None:
        """Count a document that is there and cannot be read."""
        self.lost += 1
        self._skip(reason, place)

    def _skip(self, reason: str, place: str, count: int = 1) -> None:
        self.skipped[reason] += count
        # File names and field names may hold bytes that no terminal or manifest takes.
        self.examples.setdefault(reason, place.encode(errors="backslashreplace").decode())


def check_lost(name: str, lost: int, usable: int, skipped: Mapping[str, int], examples: dict[str, str]) -> None:
    """Refuse a corpus if more than `MOST_LOST` of its documents could not be read.

    Raises:
        InputError: With all counts.
    """
    if lost > MOST_LOST * (lost + usable):
        raise InputError(
            f"{lost:,} of {lost + usable:,} documents in {name!r} cannot be read, more than the {MOST_LOST:.0%} that "
            f"may be left out: {describe_skipped(skipped, examples)}. Fix or remove them, or name the field that holds "
            "the text (`text_field`)"
        )


def describe_skipped(skipped: Mapping[str, int], examples: dict[str, str]) -> str:
    """`3 x bad JSON (first: a.jsonl:7), ...`, most frequent first; empty if nothing was skipped."""
    return ", ".join(
        f"{count:,} x {reason} (first: {examples[reason]})" for reason, count in Counter(skipped).most_common()
    )


def nothing_usable(name: str, skipped: Mapping[str, int], examples: dict[str, str]) -> str:
    """The message for a corpus without a single usable document."""
    return f"no usable document in {name!r}: {describe_skipped(skipped, examples) or 'nothing is there'}"


def _is_unicode(text: str) -> bool:
    # json.loads accepts "\ud800"; no tokenizer can encode the lone surrogate that comes of it.
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True
