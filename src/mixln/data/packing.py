"""Rows and batches of fixed length from packed documents, and the order in which training sees them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Protocol

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from mixln.data.order import permute
from mixln.data.store import TokenStore
from mixln.models.encoding import IGNORED_TARGET


@dataclass(frozen=True, eq=False)
class Batch:
    """Rows for one forward pass; each tensor int64 of shape (batch, T).

    Attributes:
        input_ids: Tokens.
        targets: `targets[:, t]` is the token that follows `input_ids[:, t]`, or -100 where nothing is predicted. They
            are shifted already; Hugging Face's `labels` are not.
        position_ids: From 0 at each document's start; given to a Hugging Face model with no attention mask, they keep
            attention within each document.
    """

    input_ids: Tensor
    targets: Tensor
    position_ids: Tensor

    @cached_property
    def num_predicted_tokens(self) -> int:
        """Targets other than -100: what a summed loss is to be divided by."""
        return int((self.targets != IGNORED_TARGET).sum())

    def to(self, device: torch.device | str, *, non_blocking: bool = False) -> Batch:
        """The same batch on another device; its tokens are counted before, where nobody has to wait for it."""
        tensors = (self.input_ids, self.targets, self.position_ids)
        moved = Batch(*(tensor.to(device, non_blocking=non_blocking) for tensor in tensors))
        moved.__dict__["num_predicted_tokens"] = self.num_predicted_tokens
        return moved


class Rows(Protocol):
    """Rows of fixed length, of whatever they are made.

    Attributes:
        sequence_length: tokens of a row.
        cross_documents: whether a row is one text; else its documents are kept apart.
    """

    sequence_length: int
    cross_documents: bool

    def __len__(self) -> int:
        """Number of rows."""
        ...

    @property
    def num_predicted_tokens(self) -> int:
        """Targets other than -100 over all rows."""
        ...

    def batch(self, rows: Sequence[int] | np.ndarray) -> Batch:
        """The given rows, in the given order."""
        ...


class TrainingData(Protocol):
    """What a language model is trained on and validated on."""

    @property
    def tokenizer(self) -> PreTrainedTokenizerFast:
        """In whose tokens it is."""
        ...

    @property
    def train(self) -> Rows:
        """To train on."""
        ...

    @property
    def validation(self) -> Rows:
        """To validate on."""
        ...

    @property
    def fingerprint(self) -> str:
        """A key of the content."""
        ...

    @property
    def largest_token(self) -> int:
        """The largest id in either part."""
        ...


class PackedDataset:
    """Rows of T = `sequence_length` tokens cut from a store's flat sequence of N tokens.

    Row i covers tokens[i*T : i*T + T + 1]: inputs are its first T, targets its last T. Rows overlap by one token, so
    over all rows every token is predicted exactly once, except the first of each document, which the document before
    it says nothing about (and except the tail that training drops).

    Args:
        store: The tokens.
        sequence_length: T, at least 1.
        keep_partial: Keep the last tokens that do not fill a row, for evaluation: there are ceil((N-1)/T) rows, and
            the last is padded with end-of-text inputs, -100 targets and positions that start anew. Otherwise they are
            dropped: floor((N-1)/T) rows.
        cross_documents: Treat the store as one long text: positions run 0 .. T-1, and the first token of each document
            is predicted too.
    """

    def __init__(
        self, store: TokenStore, sequence_length: int, *, keep_partial: bool = False, cross_documents: bool = False
    ) -> None:
        if sequence_length < 1:
            raise ValueError(f"sequence_length must be at least 1, got {sequence_length}")
        self.store = store
        self.sequence_length = sequence_length
        self.keep_partial = keep_partial
        self.cross_documents = cross_documents
        predictable = max(len(store) - 1, 0)
        self._num_rows = (predictable + (sequence_length - 1 if keep_partial else 0)) // sequence_length

    def __len__(self) -> int:
        """Number of rows."""
        return self._num_rows

    @property
    def num_predicted_tokens(self) -> int:
        """Targets other than -100 over all rows."""
        if len(self) == 0:
            return 0
        last = min(len(self) * self.sequence_length, len(self.store) - 1)  # the last token that is a target
        if self.cross_documents:
            return last
        return last - int(np.searchsorted(self.store.document_ends, last, side="right"))

    def batch(self, rows: Sequence[int] | np.ndarray) -> Batch:
        """The given rows, in the given order.

        Raises:
            IndexError: A row is not in 0 .. len(self) - 1.
        """
        numbers = np.asarray(rows, dtype=np.int64)
        if len(outside := numbers[(numbers < 0) | (numbers >= len(self))]):
            raise IndexError(f"row {outside[0]} of a dataset of {len(self)} rows")
        length = self.sequence_length
        starts = numbers * length
        filled = np.minimum(length, len(self.store) - 1 - starts)  # less than `length` in the last row alone
        windows = self.store.windows(starts, length + 1)
        slots = np.arange(length)
        padding = slots >= filled[:, None]
        input_ids = windows[:, :-1].astype(np.int64)
        targets = windows[:, 1:].astype(np.int64)
        first = np.zeros((len(numbers), length + 1), dtype=np.int64)  # slot where the slot's document begins
        if not self.cross_documents:
            row, border = self._borders(starts, filled)
            targets[row, border - 1] = IGNORED_TARGET
            first[row, border] = border
        # Padding is a document of its own, so that no token attends to it nor it to them. `filled` is no input of
        # a row's text but its last target, hence the first free slot.
        first[np.arange(len(numbers)), filled] = filled
        position_ids = slots - np.maximum.accumulate(first, axis=1)[:, :length]
        input_ids[padding] = self.store.eos_token_id
        targets[padding] = IGNORED_TARGET
        return Batch(torch.from_numpy(input_ids), torch.from_numpy(targets), torch.from_numpy(position_ids))

    def target_documents(self, rows: Sequence[int] | np.ndarray) -> np.ndarray:
        """The number, from 0, of the document that each target of the given rows is in.

        Returns:
            Shape (rows, T), int64; of padding the number of documents.
        """
        places = np.asarray(rows, dtype=np.int64)[:, None] * self.sequence_length + 1 + np.arange(self.sequence_length)
        return np.searchsorted(self.store.document_ends, places, side="right").astype(np.int64)

    def _borders(self, starts: np.ndarray, filled: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Which targets are first tokens of documents, as (index of the row, index of the token within it)."""
        # A document's end is the index of the next one's first token.
        first, last = np.searchsorted(self.store.document_ends, [starts, starts + filled], side="right")
        counts = last - first
        row = np.repeat(np.arange(len(starts)), counts)
        within = np.arange(len(row)) - np.repeat(np.cumsum(counts) - counts, counts)
        return row, self.store.document_ends[first[row] + within] - starts[row]


def training_rows(num_rows: int, step: int, batch_size: int, seed: int) -> np.ndarray:
    """The rows of one training step: entries step*batch_size + (0 .. batch_size-1) of an endless sequence of epochs.

    Each epoch is a permutation of all rows given by (seed, epoch), computed on the fly (`mixln.data.order`): time and
    memory do not depend on the number of rows. A pure function of its arguments: resuming needs the step and nothing
    else, and a process of a group may take its own slice of the rows.

    Args:
        num_rows: Rows of the dataset, at least 1.
        step: From 0.
        batch_size: Rows in one step; may exceed `num_rows`, and may reach into the next epoch.
        seed: Not negative.

    Returns:
        Row numbers, shape (batch_size,), int64.
    """
    if num_rows < 1 or step < 0 or batch_size < 1 or seed < 0:
        raise ValueError(
            f"num_rows and batch_size must be at least 1, step and seed at least 0; got num_rows={num_rows}, "
            f"batch_size={batch_size}, step={step}, seed={seed}"
        )
    rows = np.empty(batch_size, dtype=np.int64)
    filled = 0
    while filled < batch_size:
        epoch, offset = divmod(step * batch_size + filled, num_rows)
        count = min(batch_size - filled, num_rows - offset)
        rows[filled : filled + count] = permute(np.arange(offset, offset + count), num_rows, seed, epoch)
        filled += count
    return rows


def training_batch(dataset: Rows, step: int, batch_size: int, seed: int) -> Batch:
    """The batch of one training step; see `training_rows` for the order."""
    return dataset.batch(training_rows(len(dataset), step, batch_size, seed))


def evaluation_batches(dataset: Rows, batch_size: int) -> Iterator[Batch]:
    """Every row once, in order; the last batch holds what is left."""
    for start in range(0, len(dataset), batch_size):
        yield dataset.batch(range(start, min(start + batch_size, len(dataset))))
