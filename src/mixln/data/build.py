"""Writing the tokens of both splits to a folder."""

from __future__ import annotations

import math
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import closing
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerFast

from mixln.data.cache import Report
from mixln.data.config import DataConfig
from mixln.data.corpus import Corpus
from mixln.data.shards import Shard, SplitStatistics
from mixln.data.splitting import TRAINING_ONLY, choose_split, digest
from mixln.data.store import TokenStoreWriter
from mixln.data.tokenizer import DocumentEncoder, train_tokenizer

FORMAT_VERSION = 1
"""Part of the cache key; raised when the same settings would give other files."""

TOKENIZER_FILE = "tokenizer.json"
TRAIN_FOLDER = "train"
VALIDATION_FOLDER = "validation"

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


def build_stores(
    config: DataConfig,
    corpus: Corpus,
    validation_corpus: Corpus | None,
    tokenizer: PreTrainedTokenizerFast | None,
    say: Report,
    folder: Path,
) -> dict[str, Any]:
    """Write a trained tokenizer and the token stores of both splits.

    Args:
        config: Settings.
        corpus: Training documents, and validation documents unless they have a corpus of their own.
        validation_corpus: Validation documents, or None to split them off.
        tokenizer: None to train one, on the first training documents as they come (documents that are in a separate
            validation corpus too included).
        say: Called with lines of progress.
        folder: An empty folder.

    Returns:
        The manifest's entries.
    """
    split = TRAINING_ONLY if validation_corpus else choose_split(corpus, config.validation_fraction)
    if tokenizer is None:
        say(f"training a tokenizer on {corpus.name}")
        with closing(split.training_documents(corpus)) as documents:
            tokenizer = train_tokenizer(_first(documents, config.tokenizer_training_characters), config.vocab_size)
        (folder / TOKENIZER_FILE).write_text(tokenizer.backend_tokenizer.to_str(pretty=True), encoding="utf-8")
    encoder = DocumentEncoder(tokenizer)
    with (
        TokenStoreWriter(folder / TRAIN_FOLDER, encoder.vocab_size) as train_writer,
        TokenStoreWriter(folder / VALIDATION_FOLDER, encoder.vocab_size) as validation_writer,
    ):
        train = Shard(train_writer, encoder, config.max_tokens)
        validation = Shard(
            validation_writer, encoder, config.max_validation_tokens, keep_digests=validation_corpus is not None
        )
        wanted = 0  # validation tokens without which reading goes on after the training split is full
        if validation_corpus:
            with closing(validation_corpus.documents()) as documents:
                for document in documents:
                    validation.add(document)
                    if validation.full:
                        break
            validation.flush()
        elif config.max_tokens is not None:
            # The first documents may all be on the training side.
            wanted = min(config.max_validation_tokens, math.ceil(config.validation_fraction * config.max_tokens))
        duplicates = 0
        next_report = time.monotonic() + _REPORT_SECONDS
        with closing(corpus.documents()) as documents:
            for document in documents:
                if validation.digests and digest(document) in validation.digests:
                    duplicates += 1
                    continue
                (validation if split.is_validation(document) else train).add(document)
                if train.full:
                    validation.flush()
                    if validation.tokens >= wanted:
                        break
                if time.monotonic() > next_report:
                    next_report += _REPORT_SECONDS
                    limit = "" if config.max_tokens is None else f" of {config.max_tokens:,}"
                    say(f"tokenising {corpus.name}: {train.tokens:,}{limit} training tokens")
        train.flush()
        validation.flush()
    say(f"tokenised {corpus.name}: {train.tokens:,} training and {validation.tokens:,} validation tokens")
    sources = [source for source in (corpus, validation_corpus, train, validation) if source is not None]
    skipped: Counter[str] = Counter()
    examples: dict[str, str] = {}
    for source in sources:
        skipped.update(source.skipped)
        examples = source.examples | examples
    statistics = DataStatistics(train.statistics, validation.statistics, dict(skipped), examples, duplicates)
    return {
        "format": FORMAT_VERSION,
        "settings": asdict(config),  # of the run that built this; not all are part of the key
        "eos_token_id": encoder.eos_token_id,
        "statistics": asdict(statistics),
    }


def _first(documents: Iterator[str], characters: int) -> Iterator[str]:
    """The documents' first `characters` characters in all."""
    for document in documents:
        yield document[:characters]
        characters -= len(document)
        if characters <= 0:
            return
