"""Corpora, tokenizers and packed, memory-mapped datasets.

`prepare_data(DataConfig(...))` does all of it; the parts below it can be used alone:

    corpus (documents) -> tokenizer (ids) -> TokenStore (shards) -> PackedDataset (rows) -> Batch
"""

from __future__ import annotations

from mixln.data.build import DataStatistics
from mixln.data.config import DataConfig
from mixln.data.corpora import open_corpus
from mixln.data.corpus import Corpus
from mixln.data.packing import (
    IGNORE_INDEX,
    Batch,
    PackedDataset,
    evaluation_batches,
    training_batch,
    training_rows,
)
from mixln.data.prefetch import Prefetcher
from mixln.data.prepare import PreparedData, prepare_data
from mixln.data.split_writer import SplitStatistics
from mixln.data.store import TokenStore, TokenStoreWriter
from mixln.data.tokenizer import DocumentEncoder, load_tokenizer, train_tokenizer

__all__ = [
    "IGNORE_INDEX",
    "Batch",
    "Corpus",
    "DataConfig",
    "DataStatistics",
    "DocumentEncoder",
    "PackedDataset",
    "Prefetcher",
    "PreparedData",
    "SplitStatistics",
    "TokenStore",
    "TokenStoreWriter",
    "evaluation_batches",
    "load_tokenizer",
    "open_corpus",
    "prepare_data",
    "train_tokenizer",
    "training_batch",
    "training_rows",
]
