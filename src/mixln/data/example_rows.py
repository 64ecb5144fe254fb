"""Examples packed into rows: none is cut, none sees another, and only answers are learned."""

from __future__ import annotations

import hashlib
from bisect import bisect_left, insort
from collections.abc import Sequence

import numpy as np
import torch

from mixln.data.conversations import Tokens
from mixln.data.packing import Batch
from mixln.models.encoding import IGNORED_TARGET


class ExampleRows:
    """Rows of T = `sequence_length` tokens that hold whole examples.

    An example of n tokens takes n - 1 places: all but the last are inputs, all but the first are targets, those of
    prompts -100. Examples are put into rows by best fit, longest first (Johnson 1974): each into the fullest row that
    has room for it. What is left of a row is padding: end-of-text inputs and -100 targets. Padding is known by its
    place, not by its token: the end-of-text token behind an answer is learned, whatever the padding token is.

    Args:
        examples: each of at most T + 1 tokens.
        sequence_length: T.
        padding: the token that fills rows.
    """

    cross_documents = False

    def __init__(self, examples: Sequence[Tokens], sequence_length: int, padding: int) -> None:
        self.sequence_length = sequence_length
        self._examples = examples
        self._padding = padding
        self.packed = best_fit([len(example) - 1 for example in examples], sequence_length)

    def __len__(self) -> int:
        """Number of rows."""
        return len(self.packed)

    @property
    def num_predicted_tokens(self) -> int:
        """Targets other than -100 over all rows."""
        return sum(int(example.is_answer[1:].sum()) for example in self._examples)

    @property
    def filled(self) -> float:
        """The share of the places that are no padding."""
        return sum(len(example) - 1 for example in self._examples) / (len(self) * self.sequence_length)

    @property
    def largest_token(self) -> int:
        """The largest id."""
        return max(self._padding, *(int(example.ids.max()) for example in self._examples))

    def fingerprint(self) -> str:
        """sha256 over all tokens and which of them are answers, in order."""
        digest = hashlib.sha256()
        for example in self._examples:
            digest.update(len(example).to_bytes(8, "little") + example.ids.tobytes() + example.is_answer.tobytes())
        return digest.hexdigest()

    def batch(self, rows: Sequence[int] | np.ndarray) -> Batch:
        """The given rows, in the given order.

        Raises:
            IndexError: a row is not in 0 .. len(self) - 1.
        """
        shape = len(rows), self.sequence_length
        input_ids = np.full(shape, self._padding, dtype=np.int64)
        targets = np.full(shape, IGNORED_TARGET, dtype=np.int64)
        position_ids = np.zeros(shape, dtype=np.int64)
        for row, number in enumerate(np.asarray(rows, dtype=np.int64).tolist()):
            if not 0 <= number < len(self):
                raise IndexError(f"row {number} of a dataset of {len(self)} rows")
            start = 0
            for index in self.packed[number]:
                example = self._examples[index]
                end = start + len(example) - 1
                input_ids[row, start:end] = example.ids[:-1]
                targets[row, start:end] = np.where(example.is_answer[1:], example.ids[1:], IGNORED_TARGET)
                position_ids[row, start:end] = np.arange(end - start)
                start = end
            position_ids[row, start:] = np.arange(self.sequence_length - start)  # a document of its own
        return Batch(*map(torch.from_numpy, (input_ids, targets, position_ids)))


def best_fit(sizes: Sequence[int], capacity: int) -> list[list[int]]:
    """Return rows of indices, the sizes of each adding up to the capacity at most: best fit, largest first."""
    rows: list[list[int]] = []
    rooms: list[tuple[int, int]] = []  # (room, row), sorted
    for index in sorted(range(len(sizes)), key=lambda index: (-sizes[index], index)):
        at = bisect_left(rooms, (sizes[index], -1))
        if at == len(rooms):
            rows.append([])
            room, row = capacity, len(rows) - 1
        else:
            room, row = rooms.pop(at)
        rows[row].append(index)
        insort(rooms, (room - sizes[index], row))
    return rows
