"""What every source of documents has in common."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Generator, Iterator
from typing import Any

from mixln.errors import InputError

Part = Any
"""A piece of a corpus that can be read by itself: whatever its corpus makes of it, but picklable."""


class Corpus(ABC):
    """A source of documents that is read lazily, and that counts what it could not use.

    `documents()` may be called again; each call starts from the beginning and resets the counts. It is the same as
    `read` of every one of `parts()`, in order; parts can be read by several processes.

    Attributes:
        name: What the user called the corpus; for messages.
        unbounded: True if reading to the end may take terabytes (a streamed hub dataset).
        skipped: Reason -> number of pieces (files, rows, documents) left out, filled while documents are read.
        examples: Reason -> the first place where it occurred (`file`, `file:line` or `file:row`).
    """

    unbounded: bool = False

    def __init__(self, name: str) -> None:
        self.name = name
        self.skipped: Counter[str] = Counter()
        self.examples: dict[str, str] = {}

    @abstractmethod
    def fingerprint(self) -> str:
        """A key of the content: equal fingerprints mean equal documents in equal order."""

    @abstractmethod
    def parts(self) -> list[Part]:
        """What can be read independently, in order; resets the counts."""

    @abstractmethod
    def _read(self, part: Part) -> Iterator[tuple[str, str]]:
        """Yield (text, place); what cannot be read goes through `_skip`."""

    def read(self, part: Part) -> Generator[str, None, None]:
        """Yield the usable documents of one part, and count the others."""
        for text, place in self._read(part):
            if not text or text.isspace():
                self._skip("empty document", place)
            elif not _is_unicode(text):
                self._skip("lone surrogate (not Unicode text)", place)
            else:
                yield text

    def documents(self) -> Generator[str, None, None]:
        """Yield the usable documents: not empty, and encodable as UTF-8 (so without lone surrogates).

        Raises:
            InputError: The end was reached without a single usable document.
        """
        usable = 0
        for part in self.parts():
            for text in self.read(part):
                usable += 1
                yield text
        if usable == 0:
            raise InputError(nothing_usable(self.name, self.skipped, self.examples))

    def reset_counts(self) -> None:
        """Forget what was skipped."""
        self.skipped.clear()
        self.examples.clear()

    def describe_skipped(self) -> str:
        """The counts in one line, most frequent first; empty if nothing was skipped."""
        return describe_skipped(self.skipped, self.examples)

    def _skip(self, reason: str, place: str, count: int = 1) -> None:
        self.skipped[reason] += count
        # File names and field names may hold bytes that no terminal or manifest takes.
        self.examples.setdefault(reason, place.encode(errors="backslashreplace").decode())


def describe_skipped(skipped: Counter[str], examples: dict[str, str]) -> str:
    """`3 x bad JSON (first: a.jsonl:7), ...`, most frequent first; empty if nothing was skipped."""
    return ", ".join(f"{count:,} x {reason} (first: {examples[reason]})" for reason, count in skipped.most_common())


def nothing_usable(name: str, skipped: Counter[str], examples: dict[str, str]) -> str:
    """The message for a corpus without a single usable document."""
    return f"no usable document in {name!r}: {describe_skipped(skipped, examples) or 'nothing is there'}"


def _is_unicode(text: str) -> bool:
    # json.loads accepts "\ud800"; no tokenizer can encode the lone surrogate that comes of it.
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True
