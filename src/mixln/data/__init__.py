"""Corpora, tokenizers and packed, memory-mapped datasets.

`prepare_data(DataConfig(...))` does all of it; the parts below it can be used alone:

    corpus (documents) -> tokenizer (ids) -> TokenStore (shards) -> PackedDataset (rows) -> Batch
"""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from mixln.data.build import DataStatistics
    from mixln.data.config import DataConfig
    from mixln.data.corpora import open_corpus
    from mixln.data.corpus import Corpus
    from mixln.data.packing import Batch, PackedDataset, evaluation_batches, training_batch, training_rows
    from mixln.data.prepare import PreparedData, prepare_data
    from mixln.data.split_writer import SplitStatistics
    from mixln.data.store import TokenStore, TokenStoreWriter
    from mixln.data.tokenizer import load_training_tokenizer, train_tokenizer
    from mixln.models.encoding import DocumentEncoder
else:
    from mixln.lazy import lazy_names

    __getattr__, __dir__ = lazy_names(__name__)

__all__ = [
    "Batch",
    "Corpus",
    "DataConfig",
    "DataStatistics",
    "DocumentEncoder",
    "PackedDataset",
    "PreparedData",
    "SplitStatistics",
    "TokenStore",
    "TokenStoreWriter",
    "evaluation_batches",
    "load_training_tokenizer",
    "open_corpus",
    "prepare_data",
    "train_tokenizer",
    "training_batch",
    "training_rows",
]
