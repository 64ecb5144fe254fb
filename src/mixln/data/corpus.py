"""What every source of documents has in common."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Generator, Iterator
from contextlib import closing
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

from mixln.errors import InputError

MOST_LOST = 0.01
"""The share of its documents that a corpus may lose before it is refused."""

Part = Any
"""A stretch of a corpus that can be read by itself: whatever its corpus makes of it."""


@dataclass
class LeftOut:
    """What could not be used of a corpus.

    Some of it is lost: documents that are there and cannot be read (bad JSON, no such field, not UTF-8). Of these there
    may be 1 % (`MOST_LOST`). The rest was no document, or an empty one.

    Attributes:
        skipped: Reason -> number of files, rows or documents.
        examples: Reason -> the first place where it occurred (`file`, `file:line` or `file:row`).
        lost: How many of the skipped are lost.
    """

    skipped: dict[str, int] = field(default_factory=dict)
    examples: dict[str, str] = field(default_factory=dict)
    lost: int = 0

    def skip(self, reason: str, place: str) -> None:
        """Count one."""
        self.skipped[reason] = self.skipped.get(reason, 0) + 1
        # File names and field names may hold bytes that no terminal or manifest takes.
        self.examples.setdefault(reason, place.encode(errors="backslashreplace").decode())

    def include(self, later: LeftOut) -> None:
        """Add what was left out of a stretch that follows."""
        for reason, count in later.skipped.items():
            self.skipped[reason] = self.skipped.get(reason, 0) + count
        self.examples = later.examples | self.examples  # the first stays
        self.lost += later.lost

    def describe(self) -> str:
        """`3 x bad JSON (first: a.jsonl:7), ...`, most frequent first; empty if nothing was skipped."""
        by_count = sorted(self.skipped.items(), key=lambda entry: -entry[1])
        return ", ".join(f"{count:,} x {reason} (first: {self.examples[reason]})" for reason, count in by_count)

    def check(self, name: str, usable: int) -> None:
        """Refuse a corpus, called `name`, without a usable document, or with more lost than may be.

        Raises:
            InputError: With all counts.
        """
        if usable == 0:
            raise InputError(f"no usable document in {name!r}: {self.describe() or 'nothing is there'}")
        if self.lost > MOST_LOST * (self.lost + usable):
            raise InputError(
                f"{self.lost:,} of {self.lost + usable:,} documents in {name!r} cannot be read, more than the "
                f"{MOST_LOST:.0%} that may be left out: {self.describe()}. Fix or remove them, or name the field that "
                "holds the text (`text_field`)"
            )


class Corpus(ABC):
    """A source of documents that is read lazily, and that counts what it could not use.

    `documents()` may be called again; each call starts from the beginning and resets the counts. It is the same as
    `read` of every one of `parts()`, in order.

    Attributes:
        name: What the user called the corpus; for messages.
        unbounded: True if reading to the end may take terabytes (a streamed hub dataset).
        left_out: Filled while documents are read.
    """

    unbounded: bool = False

    def __init__(self, name: str) -> None:
        self.name = name
        self.left_out = LeftOut()

    @abstractmethod
    def fingerprint(self) -> str:
        """A key of the content: equal fingerprints mean equal documents in equal order."""

    @abstractmethod
    def parts(self) -> list[Part]:
        """What can be read independently, in order; resets the counts."""

    @abstractmethod
    def _read(self, part: Part) -> Iterator[tuple[str, str]]:
        """Yield (text, place); what cannot be read goes through `_lose`."""

    def read(self, part: Part) -> Generator[tuple[str, str], None, None]:
        """Yield the usable documents of one part, each with its place, and count the others."""
        for text, place in self._read(part):
            if not text or text.isspace():
                self._skip("empty document", place)
                continue
            try:
                # json.loads accepts "\ud800"; no tokenizer can encode the lone surrogate that comes of it.
                text.encode()
            except UnicodeEncodeError:
                self._lose("lone surrogate (not Unicode text)", place)
            else:
                yield text, place

    def documents(self) -> Generator[str, None, None]:
        """Yield the usable documents: not empty, and encodable as UTF-8 (no lone surrogates).

        Raises:
            InputError: The end was reached without a single usable document, or more are lost than may be; or a file
                is damaged.
        """
        usable = 0
        for part in self.parts():
            for text, _ in self.read(part):
                usable += 1
                yield text
        self.left_out.check(self.name, usable)

    def first(self, count: int) -> list[str]:
        """The first so many usable documents; what was left out until then is counted.

        Raises:
            InputError: As `documents`, of what was read.
        """
        with closing(self.documents()) as documents:
            texts = list(islice(documents, count))
        self.left_out.check(self.name, len(texts))
        return texts

    def _text(self, value: object, field: str, place: str) -> Iterator[tuple[str, str]]:
        """Yield what a row has in its field `field`, if that is text."""
        if isinstance(value, str):
            yield value, place
        elif value is None:
            self._skip("empty document (null)", place)
        else:
            self._lose(f"field {field!r} is not a string", place)

    def _lose(self, reason: str, place: str) -> None:
        """Count a document that is there and cannot be read."""
        self.left_out.lost += 1
        self._skip(reason, place)

    def _skip(self, reason: str, place: str) -> None:
        """Count what is no document, or an empty one."""
        self.left_out.skip(reason, place)
