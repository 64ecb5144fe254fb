"""What a model is measured on: batches for any kind of model."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from mixln.measure.forward import TokenBatch, call_model, counted_positions, model_device, on_device


@dataclass(frozen=True)
class ModelBatch:
    """One call of a model, and what of it counts.

    Attributes:
        arguments: keyword arguments of the model; tensors have rows in their first dimension.
        counted: bool (rows, tokens), the positions that averages run over; None: every position of the hidden states
            (images).
        targets: what is to be predicted, -100 where nothing is: (rows, tokens) by a language model at each position,
            (rows,) by a classifier of rows (images); None: nothing is.
        documents: (rows,) int64, the number of the document that each row is of; intervals are over documents.
    """

    arguments: Mapping[str, Any]
    counted: torch.Tensor | None
    targets: torch.Tensor | None
    documents: torch.Tensor

    def counted_in(self, hidden_states: torch.Tensor) -> torch.Tensor:
        """`counted` for these (rows, tokens, hidden) states, on their device."""
        if self.counted is None:
            return torch.ones(hidden_states.shape[:2], dtype=torch.bool, device=hidden_states.device)
        return self.counted.to(hidden_states.device)

    def rows(self, first: int, end: int) -> ModelBatch:
        """The rows from `first` to before `end`."""
        return self.select(torch.arange(first, min(end, len(self.documents))))

    def select(self, rows: torch.Tensor) -> ModelBatch:
        """Some of the rows, by their numbers or a bool for each."""
        return ModelBatch(
            {name: value[rows] if _has_rows(value, self) else value for name, value in self.arguments.items()},
            None if self.counted is None else self.counted[rows],
            None if self.targets is None else self.targets[rows],
            self.documents[rows],
        )

    def tokens_in_row(self, row: int) -> int:
        """Counted tokens of a row; 1 where every position counts (a whole image)."""
        return 1 if self.counted is None else int(self.counted[row].sum())

    def arguments_on(self, device: torch.device) -> dict[str, Any]:
        """The arguments with their tensors on a device."""
        return on_device(self.arguments, device)

    def run(self, model: nn.Module) -> Any:
        """The output of a model for the batch, as `call_model`."""
        return call_model(model, self.arguments_on(model_device(model)))


def _has_rows(value: Any, batch: ModelBatch) -> bool:
    return isinstance(value, torch.Tensor) and value.ndim > 0 and len(value) == len(batch.documents)


def model_batches(batches: Iterable[TokenBatch | ModelBatch]) -> Iterator[ModelBatch]:
    """Packed rows of training as batches of the general kind, each row a document of its own; others as they are."""
    rows = 0
    for batch in batches:
        if isinstance(batch, ModelBatch):
            yield batch
            continue
        first, rows = rows, rows + len(batch.input_ids)
        yield ModelBatch(
            # without a cache: given one, transformers does not look for documents in position_ids
            {"input_ids": batch.input_ids, "position_ids": batch.position_ids, "use_cache": False},
            counted_positions(batch),
            batch.targets,
            torch.arange(first, rows),
        )


def first_tokens(batches: Sequence[ModelBatch], tokens: int) -> list[ModelBatch]:
    """The first rows, until they have so many counted tokens; at least one row. No row is cut.

    Which rows these are does not depend on how they are put into batches.
    """
    chosen: list[ModelBatch] = []
    for batch in batches:
        for row in range(len(batch.documents)):
            if tokens <= 0:
                chosen.append(batch.rows(0, row))
                return [part for part in chosen if len(part.documents)]
            tokens -= batch.tokens_in_row(row)
        chosen.append(batch)
    return chosen


def count_tokens(batches: Iterable[ModelBatch]) -> int:
    """Counted tokens; of batches that count every position, rows."""
    return sum(batch.tokens_in_row(row) for batch in batches for row in range(len(batch.documents)))
