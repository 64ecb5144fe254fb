"""From a corpus to packed datasets: split, tokenizer, tokens on disk, cached by content."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from tokenizers import Tokenizer
from transformers import PreTrainedTokenizerFast

from mixln.data.build import (
    FORMAT_VERSION,
    TOKENIZER_FILE,
    TRAIN_FOLDER,
    VALIDATION_FOLDER,
    DataStatistics,
    build_stores,
)
from mixln.data.cache import Report, cached_folder
from mixln.data.config import DataConfig
from mixln.data.corpora import open_corpus
from mixln.data.corpus import Corpus, describe_skipped
from mixln.data.packing import PackedDataset
from mixln.data.store import TokenStore
from mixln.data.tokenizer import load_tokenizer, wrap_tokenizer
from mixln.errors import InputError


@dataclass(frozen=True, eq=False)
class PreparedData:
    """Data ready for training.

    Attributes:
        tokenizer: Its real size is `len(tokenizer)`, which may be less than the `vocab_size` asked for.
        train: Rows in corpus order, the last partial row dropped; `training_batch` shuffles them.
        validation: Rows in corpus order, the last partial row kept.
        statistics: Counts.
        fingerprint: Key of the content: equal for two runs that see the same tokens in the same order. Row length and
            `cross_documents` are not part of it.
    """

    tokenizer: PreTrainedTokenizerFast
    train: PackedDataset
    validation: PackedDataset
    statistics: DataStatistics
    fingerprint: str


def prepare_data(config: DataConfig, cache_dir: Path | None = None, report: Report | None = None) -> PreparedData:
    """Split, tokenise and pack a corpus, or find it done already.

    Tokens are cached in `cache_dir/data/FINGERPRINT`, where FINGERPRINT is a hash of the corpus's content and of every
    setting that changes tokens; a cached corpus is only hashed. Documents are read lazily, twice if a tokenizer is
    trained; memory does not grow with the corpus.

    Args:
        config: What to prepare.
        cache_dir: Default `~/.cache/mixln`.
        report: Called with one line at a time of progress and of what was left out.

    Raises:
        InputError: A setting, corpus or tokenizer cannot be used, the disk cannot be written to, or the data do not
            fill one training row and one validation target.
    """
    say: Report = report or (lambda _: None)
    config.check()
    corpus = open_corpus(config.corpus, text_field=config.text_field)
    validation_corpus = (
        open_corpus(config.validation_corpus, text_field=config.text_field) if config.validation_corpus else None
    )
    if corpus.unbounded and config.max_tokens is None:
        raise InputError(f"corpus {corpus.name!r} is streamed from the hub without end in sight; set max_tokens")
    tokenizer = load_tokenizer(config.tokenizer) if config.tokenizer else None
    fingerprint = _fingerprint(config, corpus, validation_corpus, tokenizer)
    folder, manifest = cached_folder(
        (cache_dir or Path.home() / ".cache" / "mixln") / "data",
        fingerprint,
        partial(build_stores, config, corpus, validation_corpus, tokenizer, say),
        say,
    )
    statistics = DataStatistics.from_manifest(manifest)
    if statistics.skipped:
        say(f"skipped {describe_skipped(Counter(statistics.skipped), statistics.examples)}")
    if statistics.duplicates_removed:
        say(f"dropped {statistics.duplicates_removed:,} training documents that are validation documents too")
    if tokenizer is None:
        tokenizer = wrap_tokenizer(Tokenizer.from_file(str(folder / TOKENIZER_FILE)))
    return _pack(config, folder, tokenizer, statistics, fingerprint)


def _fingerprint(
    config: DataConfig, corpus: Corpus, validation_corpus: Corpus | None, tokenizer: PreTrainedTokenizerFast | None
) -> str:
    key = {
        "format": FORMAT_VERSION,
        "corpus": corpus.fingerprint(),
        "validation": validation_corpus.fingerprint() if validation_corpus else config.validation_fraction,
        "tokenizer": (
            [tokenizer.backend_tokenizer.to_str(), tokenizer.eos_token_id]
            if tokenizer
            else [config.vocab_size, config.tokenizer_training_characters]
        ),
        "max_tokens": config.max_tokens,
        "max_validation_tokens": config.max_validation_tokens,
    }
    return hashlib.sha256(json.dumps(key).encode()).hexdigest()[:32]


def _pack(
    config: DataConfig, folder: Path, tokenizer: PreTrainedTokenizerFast, statistics: DataStatistics, fingerprint: str
) -> PreparedData:
    assert isinstance(tokenizer.eos_token_id, int)
    train = PackedDataset(
        TokenStore(folder / TRAIN_FOLDER, tokenizer.eos_token_id),
        config.sequence_length,
        cross_documents=config.cross_documents,
    )
    validation = PackedDataset(
        TokenStore(folder / VALIDATION_FOLDER, tokenizer.eos_token_id),
        config.sequence_length,
        keep_partial=True,
        cross_documents=config.cross_documents,
    )
    if len(train) == 0:
        dropped = statistics.duplicates_removed
        raise InputError(
            f"the training split of {config.corpus!r} holds {statistics.train.tokens:,} tokens in "
            f"{statistics.train.documents:,} documents, fewer than the {config.sequence_length + 1:,} of one row"
            + (f" ({dropped:,} documents that are validation documents too were dropped)" if dropped else "")
            + "; use a larger corpus, a greater max_tokens or a smaller sequence_length"
        )
    if validation.num_predicted_tokens == 0:
        raise InputError(
            f"the validation split of {config.validation_corpus or config.corpus!r} holds "
            f"{statistics.validation.tokens:,} tokens in {statistics.validation.documents:,} documents, none of them "
            "to predict; use a larger corpus or a greater max_validation_tokens"
        )
    return PreparedData(tokenizer, train, validation, statistics, fingerprint)
