"""Writing the tokens of both splits to a folder."""

from __future__ import annotations

import math
import time
from collections import Counter
from collections.abc import Generator, Iterator, Mapping
from contextlib import closing
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerFast

from mixln.data.cache import Report
from mixln.data.config import DataConfig
from mixln.data.corpus import Corpus, nothing_usable
from mixln.data.piece_maker import PieceJob
from mixln.data.piece_stream import PieceCounts, tokenized_pieces
from mixln.data.pieces import Piece, piece_characters
from mixln.data.split_writer import SplitStatistics, SplitWriter
from mixln.data.splitting import TRAINING_ONLY, Split, choose_split
from mixln.data.store import TokenStoreWriter, shard_file
from mixln.data.tokenizer import DocumentEncoder, load_tokenizer, tokenizer_hash, train_tokenizer
from mixln.errors import InputError
from mixln.files import whole_folder
from mixln.version import __version__

FORMAT_VERSION = 2
"""Part of the cache key and the manifest; raised when the same settings would give other files."""

TOKENIZER_FOLDER = "tokenizer"
TRAIN_FOLDER = "train"
VALIDATION_FOLDER = "validation"

_REPORT_SECONDS = 10.0

Pieces = Generator[Piece, None, None]


@dataclass(frozen=True)
class DataStatistics:
    """What was prepared, and what was left out.

    Attributes:
        train: Training documents, characters and tokens.
        validation: The same of validation.
        skipped: Reason -> number of pieces of the corpus that could not be used, as far as it was read.
        examples: Reason -> first place.
        duplicates_removed: Training documents dropped because they are validation documents too.
    """

    train: SplitStatistics
    validation: SplitStatistics
    skipped: dict[str, int]
    examples: dict[str, str]
    duplicates_removed: int

    @classmethod
    def from_manifest(cls, manifest: dict[str, Any]) -> DataStatistics:
        """Read back what `build_stores` has put into a manifest."""
        entries: dict[str, Any] = manifest["statistics"]
        splits = {name: SplitStatistics(**entries[name]) for name in ("train", "validation")}
        return cls(**{**entries, **splits})


@dataclass(frozen=True, eq=False)
class Sources:
    """What is to be prepared, opened but not read.

    Attributes:
        config: Settings.
        corpus: Training documents, and validation documents unless they have a corpus of their own.
        validation_corpus: Validation documents, or None to split them off.
        tokenizer: None to train one, on the first training documents as they come (documents that are in a separate
            validation corpus too included).
        corpus_fingerprint: Key of the corpus's content.
        validation_fingerprint: Key of the validation corpus's content, if there is one.
        fingerprint: Key of all that decides on the tokens.
    """

    config: DataConfig
    corpus: Corpus
    validation_corpus: Corpus | None
    tokenizer: PreTrainedTokenizerFast | None
    corpus_fingerprint: str
    validation_fingerprint: str | None
    fingerprint: str


def build_stores(sources: Sources, workers: int, say: Report, folder: Path, work: Path) -> dict[str, Any]:
    """Write the tokenizer and the token stores of both splits.

    Args:
        sources: What to prepare.
        workers: Processes that tokenise.
        say: Called with lines of progress.
        folder: An empty folder.
        work: Where finished pieces are kept, and found again by the next call.

    Returns:
        The manifest's entries.
    """
    config, corpus, validation_corpus = sources.config, sources.corpus, sources.validation_corpus
    split = TRAINING_ONLY if validation_corpus else choose_split(corpus, config.validation_fraction)
    tokenizer = sources.tokenizer or _trained_tokenizer(config, corpus, split, say, work / TOKENIZER_FOLDER)
    tokenizer.save_pretrained(folder / TOKENIZER_FOLDER)
    encoder = DocumentEncoder(tokenizer)
    tally = _Tally()
    with (
        TokenStoreWriter(folder / TRAIN_FOLDER, encoder.vocab_size) as train_writer,
        TokenStoreWriter(folder / VALIDATION_FOLDER, encoder.vocab_size) as validation_writer,
    ):
        train = SplitWriter(train_writer, encoder, config.max_tokens)
        validation = SplitWriter(validation_writer, encoder, config.max_validation_tokens)

        def pieces(
            source: Corpus, name: str, limit: int | None, excluded: frozenset[int]
        ) -> Generator[Piece, None, None]:
            processes = workers if source is corpus else 1  # validation data are small
            job = PieceJob(source, source.parts(), encoder, split, excluded, piece_characters(limit), work / name)
            tally.count(source.skipped, source.examples)  # what is no file of documents at all
            return tokenized_pieces(job, processes, limit, say, tally.pieces)

        written: set[int] = set()  # digests of a separate validation split
        if validation_corpus:
            limit = config.max_validation_tokens
            with closing(pieces(validation_corpus, VALIDATION_FOLDER, limit, frozenset())) as stream:
                for piece in stream:
                    tally.add(piece)
                    count = validation.add(piece.train)  # nothing is split off this corpus
                    written.update(piece.train.digests[:count].tolist())
                    if validation.full:
                        break
            tally.check(validation_corpus)
        # Validation tokens without which reading goes on after the training split is full: the first documents may all
        # be on the training side.
        wanted = 0
        if validation_corpus is None and config.max_tokens is not None:
            wanted = min(config.max_validation_tokens, math.ceil(config.validation_fraction * config.max_tokens))
        next_report = time.monotonic() + _REPORT_SECONDS
        with closing(pieces(corpus, TRAIN_FOLDER, config.max_tokens, frozenset(written))) as stream:
            for piece in stream:
                tally.add(piece)
                train.add(piece.train)
                validation.add(piece.validation)
                if train.full and validation.tokens >= wanted:
                    break
                if time.monotonic() > next_report:
                    next_report = time.monotonic() + _REPORT_SECONDS
                    limit = "" if config.max_tokens is None else f" of {config.max_tokens:,}"
                    say(f"tokenising {corpus.name}: {train.tokens:,}{limit} training tokens")
        tally.check(corpus)
    again = f" ({tally.pieces.found:,} pieces were found finished)" if tally.pieces.found else ""
    say(f"tokenised {corpus.name}: {train.tokens:,} training and {validation.tokens:,} validation tokens{again}")
    statistics = DataStatistics(
        train.statistics, validation.statistics, dict(tally.skipped), tally.examples, tally.duplicates
    )
    return {
        "format": FORMAT_VERSION,
        "mixln": __version__,
        "fingerprint": sources.fingerprint,
        "source": {"name": corpus.name, "fingerprint": sources.corpus_fingerprint},
        "validation_source": (
            {"name": validation_corpus.name, "fingerprint": sources.validation_fingerprint}
            if validation_corpus
            else None
        ),
        "tokenizer": {
            "name": config.tokenizer,
            "sha256": tokenizer_hash(tokenizer),
            "eos_token_id": encoder.eos_token_id,
            "size": len(tokenizer),
        },
        "settings": asdict(config),  # of the run that built this; not all are part of the key
        "statistics": asdict(statistics),
        "shards": {
            folder_name: [
                {"file": f"{folder_name}/{shard_file(number)}", "tokens": tokens}
                for number, tokens in enumerate(writer.shard_sizes)
            ]
            for folder_name, writer in ((TRAIN_FOLDER, train), (VALIDATION_FOLDER, validation))
        },
    }


class _Tally:
    """What was left out, over all pieces read."""

    def __init__(self) -> None:
        self.pieces = PieceCounts()
        self.skipped: Counter[str] = Counter()
        self.examples: dict[str, str] = {}
        self.duplicates = 0
        self._documents = 0

    def count(self, skipped: Mapping[str, int], examples: Mapping[str, str]) -> None:
        self.skipped.update(skipped)
        self.examples = dict(examples) | self.examples  # the first stays

    def add(self, piece: Piece) -> None:
        self.count(piece.skipped, piece.examples)
        self.duplicates += piece.duplicates
        self._documents += len(piece.train.lengths) + len(piece.validation.lengths) + piece.duplicates

    def check(self, corpus: Corpus) -> None:
        """Raise InputError if nothing of the corpus was usable; then start counting for the next corpus."""
        if self._documents == 0:
            raise InputError(nothing_usable(corpus.name, self.skipped, self.examples))
        self._documents = 0


def _trained_tokenizer(
    config: DataConfig, corpus: Corpus, split: Split, say: Report, folder: Path
) -> PreTrainedTokenizerFast:
    """Train a tokenizer, or take the one that an interrupted preparation has trained."""
    if not folder.exists():
        say(f"training a tokenizer on {corpus.name}")
        with closing(split.training_documents(corpus)) as documents:
            trained = train_tokenizer(_first(documents, config.tokenizer_training_characters), config.vocab_size)
        with whole_folder(folder) as temporary:
            trained.save_pretrained(temporary)
    return load_tokenizer(str(folder))


def _first(documents: Iterator[str], characters: int) -> Iterator[str]:
    """The documents' first `characters` characters in all."""
    for document in documents:
        yield document[:characters]
        characters -= len(document)
        if characters <= 0:
            return
