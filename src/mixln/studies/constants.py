"""The losses that the runs of a comparison must beat: those of token frequencies and of token pairs."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from transformers import PreTrainedModel

from mixln.data import Batch, PackedDataset, PreparedData
from mixln.measure.batches import model_batches
from mixln.measure.estimates import DocumentSums
from mixln.measure.forward import autocast, model_device
from mixln.measure.frequencies import Predictions, TokenCounts
from mixln.measure.performance import token_cross_entropies
from mixln.models.encoding import IGNORED_TARGET
from mixln.modes import evaluation_mode
from mixln.report.results import Constants
from mixln.report.series import Estimate
from mixln.studies.measuring import estimates_of

MOST_COUNTED_TOKENS = 10_000_000
"""Training tokens that are counted at most, however large the corpus is: seconds, and some hundred MB."""

_TOKENS_AT_ONCE = 2_000_000


class TrainingFrequencies:
    """What the frequencies of the training tokens say of the validation tokens.

    Counted is what training predicts: every token but the first of each document. Of a corpus with more than
    `most_tokens`, rows spread evenly over it are counted, about so many tokens in all.

    Args:
        data: training and validation tokens.
        most_tokens: see above.

    Attributes:
        constants: the two losses on the validation tokens.
    """

    def __init__(self, data: PreparedData, most_tokens: int = MOST_COUNTED_TOKENS) -> None:
        counts = TokenCounts(len(data.tokenizer))
        most_rows = max(1, most_tokens // data.train.sequence_length)
        for predictions, _ in _predictions(data.train, _TOKENS_AT_ONCE, most_rows):
            counts.add(predictions)
        self._counts, self._validation = counts, data.validation
        totals = np.zeros(2)
        for predictions, _ in _predictions(data.validation, _TOKENS_AT_ONCE):
            totals += counts.token_losses(predictions).sum(), counts.pair_losses(predictions).sum()
        validation_tokens = data.validation.num_predicted_tokens
        token_frequencies, token_pairs = (totals / validation_tokens).tolist()
        self.constants = Constants(
            token_frequencies=token_frequencies,
            token_pairs=token_pairs,
            counted_tokens=counts.total,
            train_tokens=data.train.num_predicted_tokens,
            validation_tokens=validation_tokens,
        )

    def loss_over(self, model: PreTrainedModel, batch_size: int, autocast_dtype: torch.dtype | None) -> Estimate:
        """The validation loss of a model minus that of token frequencies, with its 95 % interval over documents.

        Args:
            model: that gives logits.
            batch_size: rows at once.
            autocast_dtype: autocast to this; None: the model's own precision.

        Raises:
            InputError: there is no token to predict.
        """
        sums, device = DocumentSums(), model_device(model)
        tokens = batch_size * self._validation.sequence_length
        with evaluation_mode(model), torch.no_grad(), autocast(model, autocast_dtype):
            for predictions, batch in _predictions(self._validation, tokens):
                (on_device,) = model_batches([batch.to(device)])
                losses = token_cross_entropies(on_device.run(model).logits, batch.targets)
                own = losses[batch.targets != IGNORED_TARGET].numpy()
                over = own - self._counts.token_losses(predictions)
                sums.update_tokens(torch.from_numpy(over), torch.from_numpy(predictions.documents))
        (difference,) = estimates_of(sums.estimate())
        return difference


def _predictions(
    rows: PackedDataset, tokens_at_once: int, most_rows: int | None = None
) -> Iterator[tuple[Predictions, Batch]]:
    """What rows predict, a batch at a time: all of them, or so many, spread evenly."""
    count = len(rows) if most_rows is None else min(most_rows, len(rows))
    chosen = np.linspace(0, len(rows) - 1, count).astype(np.int64)
    size = max(1, tokens_at_once // rows.sequence_length)
    for start in range(0, count, size):
        some = chosen[start : start + size]
        batch = rows.batch(some)
        documents = torch.from_numpy(rows.target_documents(some))
        yield Predictions.of(batch.input_ids, batch.targets, documents), batch
