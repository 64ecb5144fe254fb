"""Corpora, tokenizers and packed, memory-mapped datasets.

`prepare_data(DataConfig(...))` does all of it; the parts below it can be used alone:

    corpus (documents) -> tokenizer (ids) -> TokenStore (shards) -> PackedDataset (rows) -> Batch
"""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from mixln.data.config import DataConfig as DataConfig
    from mixln.data.corpora import open_corpus as open_corpus
    from mixln.data.corpus import Corpus as Corpus
    from mixln.data.packing import Batch as Batch
    from mixln.data.packing import PackedDataset as PackedDataset
    from mixln.data.packing import Rows as Rows
    from mixln.data.packing import TrainingData as TrainingData
    from mixln.data.packing import evaluation_batches as evaluation_batches
    from mixln.data.packing import training_batch as training_batch
    from mixln.data.packing import training_rows as training_rows
    from mixln.data.prepare import PreparedData as PreparedData
    from mixln.data.prepare import prepare_data as prepare_data
    from mixln.data.store import TokenStore as TokenStore
    from mixln.data.store import TokenStoreWriter as TokenStoreWriter
    from mixln.data.tokenizer import load_training_tokenizer as load_training_tokenizer
    from mixln.data.tokenizer import train_tokenizer as train_tokenizer
    from mixln.models.encoding import DocumentEncoder as DocumentEncoder
else:
    from mixln.lazy import lazy_names

    __getattr__, __dir__ = lazy_names(__name__)
