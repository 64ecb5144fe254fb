"""Writing the tokens of both splits to a folder."""

from __future__ import annotations

import json
import math
import shutil
import time
from collections.abc import Iterator
from contextlib import closing
from dataclasses import asdict, dataclass
from itertools import chain
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerFast

from mixln.data.cache import Report
from mixln.data.config import DataConfig
from mixln.data.corpus import Corpus, LeftOut
from mixln.data.pieces import Documents, Piece, naming_document, piece_characters, read_pieces, tokenized
from mixln.data.split_writer import SplitStatistics, SplitWriter
from mixln.data.splitting import choose_threshold, digest
from mixln.data.store import shard_file
from mixln.data.tokenizer import load_training_tokenizer, tokenizer_hash, train_tokenizer
from mixln.errors import InputError
from mixln.models.encoding import DocumentEncoder
from mixln.models.fragments import cut
from mixln.progress import ReportStage
from mixln.records import decode
from mixln.storage import whole_folder, write_file
from mixln.version import __version__

FORMAT_VERSION = 2
"""Part of the cache key and the manifest; raised when the same settings would give other files."""

TOKENIZER_FOLDER = "tokenizer"
TRAIN_FOLDER = "train"
VALIDATION_FOLDER = "validation"

_CHECKPOINT_FILE = "checkpoint.json"
_REPORT_SECONDS = 10.0


@dataclass(frozen=True)
class DataStatistics:
    """What was prepared, and what was left out.

    Attributes:
        train: Training documents, characters and tokens.
        validation: The same of validation.
        skipped: Reason -> number of pieces of the corpus that could not be used, as far as it was read.
        examples: Reason -> first place.
        duplicates_removed: Training documents dropped because they are validation documents too.
        lost: How many of the skipped are documents that could not be read.
    """

    train: SplitStatistics
    validation: SplitStatistics
    skipped: dict[str, int]
    examples: dict[str, str]
    duplicates_removed: int
    lost: int = 0

    @classmethod
    def from_manifest(cls, manifest: dict[str, Any]) -> DataStatistics:
        """Read back what `build_stores` has put into a manifest; InputError if it is not that."""
        return decode(cls, manifest["statistics"], "statistics")


@dataclass(frozen=True, eq=False)
class Sources:
    """What is to be prepared, opened but not read.

    Attributes:
        config: Settings.
        corpora: Folder of a split -> the corpus for it, in the order of reading. Without one for validation, documents
            are split off that for training.
        tokenizer: None to train one, on the first training documents as they come (documents that are in a separate
            validation corpus too included).
        fingerprints: Folder of a split -> key of the content of its corpus.
        fingerprint: Key of all that decides on the tokens.
    """

    config: DataConfig
    corpora: dict[str, Corpus]
    tokenizer: PreTrainedTokenizerFast | None
    fingerprints: dict[str, str]
    fingerprint: str


def build_stores(
    sources: Sources, workers: int, say: Report, folder: Path, work: Path, report_stage: ReportStage | None = None
) -> dict[str, Any]:
    """Write the tokenizer and the token stores of both splits, going on from what an interrupted call has written.

    Args:
        sources: What to prepare.
        workers: Processes that tokenise.
        say: Called with lines of progress.
        folder: Where to write; in `work`.
        work: Holds all that the next call needs to go on.
        report_stage: Progress; None: `say` is told of it.

    Returns:
        The manifest's entries.
    """
    build = _Build(sources, say, folder, work, report_stage)
    with build.train.store, build.validation.store:
        for name in sources.corpora:
            build.tokenize(name, workers)
    return build.manifest()


@dataclass
class _Progress(LeftOut):
    """How far a corpus has been read, and what was left out of it so far.

    Attributes:
        part: The part of the corpus that holds the next piece.
        number: The number of that piece in the part.
        pieces: Number of pieces before it.
        duplicates: See `DataStatistics`.
        usable: Documents with tokens, and duplicates.
    """

    part: int = 0
    number: int = 0
    pieces: int = 0
    duplicates: int = 0
    usable: int = 0

    def add(self, piece: Piece, documents: Documents) -> None:
        """Count a piece."""
        self.part, self.number = (piece.part + 1, 0) if piece.is_last else (piece.part, piece.number + 1)
        self.pieces += 1
        self.include(piece.left_out)
        self.duplicates += piece.duplicates
        self.usable += piece.duplicates + len(documents.lengths)


class _Build:
    """A preparation under way.

    Args:
        sources, say, folder, work, report_stage: See `build_stores`.

    Attributes:
        train: The training split.
        validation: The validation split.
    """

    def __init__(
        self, sources: Sources, say: Report, folder: Path, work: Path, report_stage: ReportStage | None
    ) -> None:
        config, corpora = sources.config, sources.corpora
        self._report_stage = report_stage
        self._sources = sources
        self._say = say
        self._checkpoint = work / _CHECKPOINT_FILE
        self._threshold = 0  # documents with a smaller digest are for validation
        # Validation tokens without which reading goes on after the training split is full: the first documents may all
        # be on the training side.
        self._wanted = 0
        if VALIDATION_FOLDER not in corpora:
            self._threshold = choose_threshold(corpora[TRAIN_FOLDER], config.validation_fraction)
            if config.max_tokens is not None:
                share = math.ceil(config.validation_fraction * config.max_tokens)
                self._wanted = min(config.max_validation_tokens, share)
        limits = {TRAIN_FOLDER: config.max_tokens, VALIDATION_FOLDER: config.max_validation_tokens}
        self._sizes = {name: piece_characters(limits[name]) for name in corpora}
        self._parts = {name: corpus.parts() for name, corpus in corpora.items()}
        # files without documents were counted just now, by `parts`
        self._progress = {name: _Progress(**asdict(corpus.left_out)) for name, corpus in corpora.items()}
        parts = {name: len(found) for name, found in self._parts.items()}
        self._plan = {"fingerprint": sources.fingerprint, "parts": parts, "piece_characters": self._sizes}
        saved = self._saved()
        if not saved:
            shutil.rmtree(work, ignore_errors=True)
            folder.mkdir(parents=True)
            write_file(self._checkpoint, json.dumps({"plan": self._plan}))
        self._tokenizer = sources.tokenizer or self._trained_tokenizer(work / TOKENIZER_FOLDER)
        self._tokenizer.save_pretrained(folder / TOKENIZER_FOLDER)
        self._encoder = DocumentEncoder(self._tokenizer)

        def writers() -> Iterator[SplitWriter]:
            return (SplitWriter(folder / name, self._encoder, limit, saved.get(name)) for name, limit in limits.items())

        try:
            self.train, self.validation = writers()
        except InputError as error:
            say(f"{error}; tokenising all of it again")
            saved = {}
            self.train, self.validation = writers()
        self._progress |= {name: _Progress(**found) for name, found in saved.get("progress", {}).items()}
        self._excluded: list[int] = saved.get("excluded", [])  # digests of a separate validation split
        self._found = sum(progress.pieces for progress in self._progress.values())
        self._next_report = time.monotonic() + _REPORT_SECONDS

    def tokenize(self, name: str, workers: int) -> None:
        """Read a corpus, and write its documents to their splits, until all of it is written or enough."""
        corpus, progress, is_training = self._sources.corpora[name], self._progress[name], name == TRAIN_FOLDER
        excluded = frozenset(self._excluded) if is_training else frozenset[int]()
        start = (progress.part, progress.number)
        pieces = read_pieces(corpus, self._parts[name], self._encoder, excluded, self._sizes[name], start)
        # validation data are small
        with closing(tokenized(pieces, self._encoder, workers if is_training else 1)) as stream:
            while not self._is_enough(name) and (found := next(stream, None)) is not None:
                piece, documents = found
                if is_training:
                    in_validation = documents.digests < self._threshold
                    self.train.add(documents.where(~in_validation))
                    self.validation.add(documents.where(in_validation))
                else:
                    count = self.validation.add(documents)
                    self._excluded += documents.digests[:count].tolist()
                progress.add(piece, documents)
                self._save()
                self._report(corpus)
        progress.check(corpus.name, progress.usable)

    def manifest(self) -> dict[str, Any]:
        """The entries of the manifest."""
        sources, encoder, progress = self._sources, self._encoder, list(self._progress.values())
        train, validation = self.train.statistics, self.validation.statistics
        again = f" ({self._found:,} pieces were found finished)" if self._found else ""
        name = sources.corpora[TRAIN_FOLDER].name
        self._say(f"tokenised {name}: {train.tokens:,} training and {validation.tokens:,} validation tokens{again}")
        left_out, duplicates = LeftOut(), sum(one.duplicates for one in progress)
        for one in progress:
            left_out.include(one)
        statistics = DataStatistics(train, validation, left_out.skipped, left_out.examples, duplicates, left_out.lost)
        described = {
            name: {"name": corpus.name, "fingerprint": sources.fingerprints[name]}
            for name, corpus in sources.corpora.items()
        }
        return {
            "format": FORMAT_VERSION,
            "mixln": __version__,
            "fingerprint": sources.fingerprint,
            "source": described[TRAIN_FOLDER],
            "validation_source": described.get(VALIDATION_FOLDER),
            "tokenizer": {
                "name": sources.config.tokenizer,
                "sha256": tokenizer_hash(self._tokenizer),
                **({"begin": list(encoder.begin)} if encoder.begin else {}),
                "eos_token_id": encoder.eos_token_id,
                "size": len(self._tokenizer),
            },
            "settings": asdict(sources.config),  # of the run that built this; not all are part of the key
            "statistics": asdict(statistics),
            "shards": {
                name: [
                    {"file": f"{name}/{shard_file(number)}", "tokens": tokens}
                    for number, tokens in enumerate(split.store.shard_sizes)
                ]
                for name, split in ((TRAIN_FOLDER, self.train), (VALIDATION_FOLDER, self.validation))
            },
        }

    def _saved(self) -> dict[str, Any]:
        """The checkpoint of an interrupted preparation of the same data; empty if there is none."""
        try:
            saved: dict[str, Any] = json.loads(self._checkpoint.read_bytes())
        except (FileNotFoundError, ValueError):
            return {}
        return saved if saved.get("plan") == self._plan else {}

    def _save(self) -> None:
        """Write a checkpoint."""
        content = {
            "plan": self._plan,
            TRAIN_FOLDER: self.train.flush(),
            VALIDATION_FOLDER: self.validation.flush(),
            "progress": {name: asdict(progress) for name, progress in self._progress.items()},
            "excluded": self._excluded,
        }
        write_file(self._checkpoint, json.dumps(content))

    def _is_enough(self, name: str) -> bool:
        if name == VALIDATION_FOLDER:
            return self.validation.full
        return self.train.full and self.validation.store.written.tokens >= self._wanted

    def _report(self, corpus: Corpus) -> None:
        if self._report_stage is not None:
            limit = self._sources.config.max_tokens or 0
            self._report_stage(f"tokenising {corpus.name} (training tokens)", self.train.store.written.tokens, limit)
        elif time.monotonic() > self._next_report:
            self._next_report = time.monotonic() + _REPORT_SECONDS
            limit = self._sources.config.max_tokens
            of_all = "" if limit is None else f" of {limit:,}"
            self._say(f"tokenising {corpus.name}: {self.train.store.written.tokens:,}{of_all} training tokens")

    def _trained_tokenizer(self, folder: Path) -> PreTrainedTokenizerFast:
        """Train a tokenizer, or take the one that an interrupted preparation has trained."""
        config, corpus = self._sources.config, self._sources.corpora[TRAIN_FOLDER]
        if not folder.exists():
            self._say(f"training a tokenizer on {corpus.name}")
            documents = chain.from_iterable(map(corpus.read, self._parts[TRAIN_FOLDER]))
            training = (document for document in documents if digest(document[0]) >= self._threshold)
            texts = _first(training, config.tokenizer_training_characters)
            trained = train_tokenizer(texts, config.vocab_size)
            with whole_folder(folder) as temporary:
                trained.save_pretrained(temporary)
        return load_training_tokenizer(str(folder))


def _first(documents: Iterator[tuple[str, str]], characters: int) -> Iterator[str]:
    """The documents' first `characters` characters in all; long documents in fragments, which count the same words."""
    for document, place in documents:
        with naming_document(place):
            yield from cut(document[:characters], is_safe=True)
        characters -= len(document)
        if characters <= 0:
            return
