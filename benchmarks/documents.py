"""The documents that all contenders train on, with one tokenizer for all, and the rows that each cuts from them."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tokenizers import Tokenizer
from torch import Tensor

from benchmarks.settings import SEQUENCE_LENGTH, Settings
from mixln.data import (
    PackedDataset,
    PreparedData,
    TokenStore,
    open_corpus,
    prepare_data,
    train_tokenizer,
    training_rows,
)
from mixln.data.tokenizer import wrap_tokenizer

IGNORE_INDEX = -100
_TOKENIZER_CHARACTERS = 20_000_000

Row = dict[str, Tensor]
"""One row as `transformers.default_data_collator` takes it: tensors of shape (256,)."""


@dataclass(frozen=True)
class Counts:
    """Tokens of one optimiser step.

    Attributes:
        predicted: targets that a loss is taken of: the tokens that a step learns from.
        slots: tokens that the model computes, padding included.
        padding: of these, the padding.
    """

    predicted: int
    slots: int
    padding: int = 0


@dataclass(frozen=True)
class TrainerRows:
    """Rows for Hugging Face's `Trainer`, one after the other in the order of training, and what each step holds."""

    rows: list[Row]
    counts: list[Counts]


def make_tokenizer(documents: str, vocabulary: int, cache: Path) -> Path:
    """Train the tokenizer of a corpus, or find it trained, and return its folder.

    A small corpus gives fewer tokens than asked for. The vocabulary is then filled up with tokens that never occur, so
    that the models have the size wanted.

    Raises:
        InputError: there is no such corpus.
    """
    corpus = open_corpus(documents)
    key = hashlib.sha256(f"{corpus.fingerprint()} {vocabulary} {_TOKENIZER_CHARACTERS}".encode()).hexdigest()[:16]
    folder = cache / "benchmark-tokenizers" / key
    if not (folder / "tokenizer_config.json").exists():
        with closing(corpus.documents()) as texts:
            trained = train_tokenizer(_first(texts, _TOKENIZER_CHARACTERS), vocabulary)
        filled = _fill_vocabulary(trained.backend_tokenizer.to_str(), vocabulary)
        wrap_tokenizer(Tokenizer.from_str(filled)).save_pretrained(folder)
    return folder


def _first(texts: Iterator[str], characters: int) -> Iterator[str]:
    for text in texts:
        yield text[:characters]
        characters -= len(text)
        if characters <= 0:
            return


def _fill_vocabulary(tokenizer_json: str, vocabulary: int) -> str:
    description: dict[str, Any] = json.loads(tokenizer_json)
    tokens: dict[str, int] = description["model"]["vocab"]
    # no merge leads to these, so no text is ever encoded as one of them
    tokens.update({f"<|unused {number}|>": number for number in range(len(tokens), vocabulary)})
    return json.dumps(description)


def load_documents(settings: Settings) -> PreparedData:
    """Tokenise the documents, or find it done already."""
    return prepare_data(settings.data_config(), cache_dir=settings.cache_folder)


def packed_rows(data: PreparedData, settings: Settings) -> TrainerRows:
    """Documents joined by the end-of-text token and cut to 256; positions start anew at each document.

    The same rows as mixln's own, but for the target of the last token of each row: Trainer's models shift the labels
    within the row, so that the last slot predicts nothing.
    """
    rows = [_packed_row(data.train, row) for row in _order(len(data.train), settings)]
    return TrainerRows(rows, _count(rows, settings))


def crossing_rows(data: PreparedData, settings: Settings) -> TrainerRows:
    """As `packed_rows`, but attention and prediction cross the borders of documents (transformers' run_clm.py)."""
    whole = [_packed_row(data.train, row) for row in _order(len(data.train), settings)]
    rows = [{"input_ids": row["input_ids"], "labels": row["input_ids"]} for row in whole]
    return TrainerRows(rows, _count(rows, settings))


def padded_rows(data: PreparedData, settings: Settings) -> TrainerRows:
    """One document a row, cut or padded to 256, as the published code has it."""
    store = data.train.store
    rows = [_padded_row(store, document) for document in _order(len(store.document_ends), settings)]
    return TrainerRows(rows, _count(rows, settings))


def _order(count: int, settings: Settings) -> list[int]:
    steps = (training_rows(count, step, settings.rows_per_step, settings.seed) for step in range(settings.total_steps))
    return [int(row) for rows in steps for row in rows]


def _packed_row(dataset: PackedDataset, number: int) -> Row:
    batch = dataset.batch([number])
    input_ids, position_ids = batch.input_ids[0], batch.position_ids[0]
    # the first token of a document is not predicted from the document before it
    labels = input_ids.masked_fill(position_ids == 0, IGNORE_INDEX)
    return {"input_ids": input_ids, "labels": labels, "position_ids": position_ids}


def _padded_row(store: TokenStore, document: int) -> Row:
    ends = store.document_ends
    start = int(ends[document - 1]) if document else 0
    tokens = store.tokens[start : min(int(ends[document]), start + SEQUENCE_LENGTH)]
    input_ids = torch.full((SEQUENCE_LENGTH,), store.eos_token_id, dtype=torch.long)
    input_ids[: len(tokens)] = torch.from_numpy(np.asarray(tokens, dtype=np.int64))
    attention_mask = (torch.arange(SEQUENCE_LENGTH) < len(tokens)).long()
    labels = input_ids.masked_fill(attention_mask == 0, IGNORE_INDEX)
    return {"input_ids": input_ids, "labels": labels, "attention_mask": attention_mask}


def _count(rows: list[Row], settings: Settings) -> list[Counts]:
    size = settings.rows_per_step
    return [_count_step(rows[start : start + size]) for start in range(0, len(rows), size)]


def _count_step(rows: list[Row]) -> Counts:
    return Counts(
        # label 0 of a row is the prediction of no slot
        predicted=sum(int((row["labels"][1:] != IGNORE_INDEX).sum()) for row in rows),
        slots=sum(row["input_ids"].numel() for row in rows),
        padding=sum(int((row["attention_mask"] == 0).sum()) for row in rows if "attention_mask" in row),
    )
