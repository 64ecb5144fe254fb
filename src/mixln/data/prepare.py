"""From a corpus to packed datasets: split, tokenizer, tokens on disk, cached by content."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerFast

from mixln.announce import announce
from mixln.data.build import (
    FORMAT_VERSION,
    TOKENIZER_FOLDER,
    TRAIN_FOLDER,
    VALIDATION_FOLDER,
    DataStatistics,
    Sources,
    build_stores,
)
from mixln.data.cache import Report, finished_folder
from mixln.data.config import DataConfig
from mixln.data.corpora import open_corpus
from mixln.data.corpus import Corpus, LeftOut
from mixln.data.packing import PackedDataset
from mixln.data.prepared_folder import find_prepared_folder, open_prepared_folder
from mixln.data.store import TokenStore
from mixln.data.tokenizer import load_training_tokenizer, tokenizer_hash
from mixln.errors import InputError
from mixln.interruption import keeping
from mixln.models.encoding import DocumentEncoder
from mixln.progress import ReportStage
from mixln.result import Result, copy_folder


@dataclass(frozen=True, eq=False, repr=False)
class PreparedData(Result):
    """Data ready for training; its table has a row for each split, `save` copies the folder.

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

    @property
    def folder(self) -> Path:
        """Where the prepared data lie."""
        return self.train.store.folder.parent

    @property
    def largest_token(self) -> int:
        """The largest id in either split; all tokens are read for it."""
        return max(self.train.store.largest_token(), self.validation.store.largest_token())

    def parts(self) -> Iterator[str]:
        """The size of each split, and where they are."""
        for row in self.rows():
            yield (
                f"{row['split']}: {row['tokens']:,} tokens, {row['documents']:,} documents, "
                f"{row['characters']:,} characters"
            )
        yield f"data: {self.folder}"

    def rows(self) -> list[dict[str, Any]]:
        """A row for each split."""
        splits = {"training": self.statistics.train, "validation": self.statistics.validation}
        return [
            {"split": name, "tokens": one.tokens, "documents": one.documents, "characters": one.characters}
            for name, one in splits.items()
        ]

    def _write(self, folder: Path) -> Path:
        return copy_folder(self.folder, folder)


def prepare_data(
    config: DataConfig,
    cache_dir: str | Path | None = None,
    report: Report | None = None,
    *,
    workers: int = 1,
    out: str | Path | None = None,
    report_stage: ReportStage | None = None,
) -> PreparedData:
    """Split, tokenise and pack a corpus, or find it done already.

    Tokens are cached in `cache_dir/data/FINGERPRINT`, where FINGERPRINT is a hash of the corpus's content and of every
    setting that changes tokens; a cached corpus is only hashed. Documents are read lazily, twice if a tokenizer is
    trained; memory does not grow with the corpus. Finished pieces are kept until all is done, so that after a kill the
    same call goes on where it was.

    A corpus that is a folder written with `out` (or a folder of the cache) is opened as it is, with its own tokenizer.

    Args:
        config: What to prepare.
        cache_dir: Default `~/.cache/mixln`.
        report: Called with one line at a time of progress and of what was left out.
        workers: Processes that tokenise; the result does not depend on it. With 1, this process does it, on the
            threads of the tokenizers library. A script that asks for more needs the guard
            `if __name__ == "__main__":` (see `multiprocessing`).
        report_stage: Told how many training tokens are done, piece by piece, in place of lines to `report`.
        out: Write to this folder, which must be empty, new, or hold the same data already, rather than to the cache.

    Raises:
        InputError: A setting, corpus or tokenizer cannot be used, the disk cannot be written to, or the data do not
            fill one training row and one validation target.
    """
    say: Report = report or (lambda _: None)
    if workers < 1:
        raise InputError(f"the number of workers must be at least 1, got {workers}")
    prepared = find_prepared_folder(config.corpus)
    if prepared is not None:
        if out is not None:
            raise InputError(f"corpus {config.corpus!r} is prepared already; copy that folder, or train with it")
        return _pack(config, prepared, open_prepared_folder(prepared, config), None, say)
    sources = _open(config)
    cache = Path(cache_dir or Path.home() / ".cache" / "mixln") / "data"
    final = Path(out).expanduser().absolute() if out else cache / sources.fingerprint
    accept = partial(_accept, final, sources.fingerprint) if out else (lambda _: None)
    is_new = False

    def build(folder: Path, work: Path) -> dict[str, Any]:
        nonlocal is_new
        is_new = True
        return build_stores(sources, workers, say, folder, work, report_stage)

    with keeping(lambda: f"what is tokenised is kept in {final.parent}. Run the same command again to go on"):
        manifest = finished_folder(final, build, say, accept=accept, chosen_by="out" if out else "cache")
    announce(("tokens", f"{final}" if is_new else f"prepared already, nothing to tokenise: {final}"))
    return _pack(config, final, manifest, sources.tokenizer, say)


def _open(config: DataConfig) -> Sources:
    if config.validation_corpus and find_prepared_folder(config.validation_corpus):
        raise InputError(
            f"validation_corpus {config.validation_corpus!r} is prepared data, which have both splits; give that "
            "folder as the corpus, or documents as the validation_corpus"
        )
    corpora: dict[str, Corpus] = {}
    if config.validation_corpus:  # read first: its documents are left out of the other
        corpora[VALIDATION_FOLDER] = open_corpus(config.validation_corpus, text_field=config.text_field)
    corpora[TRAIN_FOLDER] = corpus = open_corpus(config.corpus, text_field=config.text_field)
    if corpus.unbounded and config.max_tokens is None:
        raise InputError(f"corpus {corpus.name!r} is streamed from the hub, and its size is not known; set max_tokens")
    tokenizer = load_training_tokenizer(config.tokenizer) if config.tokenizer else None
    fingerprints = {name: source.fingerprint() for name, source in corpora.items()}
    key = {
        "format": FORMAT_VERSION,
        "corpus": fingerprints[TRAIN_FOLDER],
        "validation": fingerprints.get(VALIDATION_FOLDER, config.validation_fraction),
        "tokenizer": (
            tokenizer_hash(tokenizer) if tokenizer else [config.vocab_size, config.tokenizer_training_characters]
        ),
        "max_tokens": config.max_tokens,
        "max_validation_tokens": config.max_validation_tokens,
    }
    if tokenizer and (begin := DocumentEncoder(tokenizer).begin):
        key["begin"] = begin  # not in the keys of older versions, which left it out of the documents
    fingerprint = hashlib.sha256(json.dumps(key).encode()).hexdigest()[:32]
    return Sources(config, corpora, tokenizer, fingerprints, fingerprint)


def _accept(folder: Path, fingerprint: str, manifest: dict[str, Any] | None) -> None:
    """Refuse an output folder that holds anything but the data asked for."""
    if manifest is None:
        raise InputError(f"{folder} holds something else, or damaged prepared data; delete it or choose another folder")
    found = manifest.get("fingerprint", "unknown")
    if found != fingerprint:
        raise InputError(
            f"{folder} holds other prepared data (fingerprint {found}, not {fingerprint}); delete it or choose another "
            "folder"
        )


def _pack(
    config: DataConfig, folder: Path, manifest: dict[str, Any], tokenizer: PreTrainedTokenizerFast | None, say: Report
) -> PreparedData:
    statistics = DataStatistics.from_manifest(manifest)
    if cut_off := [reason for reason in statistics.skipped if reason.startswith("corrupt ")]:
        raise InputError(
            f"the data in {folder} were prepared by mixln {manifest['mixln']} from a file that is damaged or cut off "
            f"({statistics.examples[cut_off[0]]}); fix or remove it, and prepare them again"
        )
    if statistics.skipped:
        say(f"skipped {LeftOut(statistics.skipped, statistics.examples).describe()}")
    if statistics.duplicates_removed:
        say(f"dropped {statistics.duplicates_removed:,} training documents that are validation documents too")
    tokenizer = tokenizer or load_training_tokenizer(str(folder / TOKENIZER_FOLDER))
    assert isinstance(tokenizer.eos_token_id, int)
    train, validation = (
        PackedDataset(
            TokenStore(folder / name, tokenizer.eos_token_id),
            config.sequence_length,
            keep_partial=name == VALIDATION_FOLDER,
            cross_documents=config.cross_documents,
        )
        for name in (TRAIN_FOLDER, VALIDATION_FOLDER)
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
            f"{statistics.validation.tokens:,} tokens in {statistics.validation.documents:,} documents, too few "
            "to predict any; use a larger corpus or a greater max_validation_tokens"
        )
    return PreparedData(tokenizer, train, validation, statistics, manifest["fingerprint"])
