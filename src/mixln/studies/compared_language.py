"""Language models in a comparison."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch

from mixln.data import PreparedData, TrainingData, training_batch
from mixln.device import default_device
from mixln.measure import LanguageModelLoss, model_batches
from mixln.measure.batches import ModelBatch
from mixln.studies.compared_kinds import Baseline, ComparedKind
from mixln.studies.constants import TrainingFrequencies
from mixln.tasks import Pretraining, Recipe
from mixln.tasks.kinds import LANGUAGE

_MEASURED_ROWS = 32
"""Validation rows that the depth measures run over at most; removal costs about L/2 forward passes for each."""


class _Frequencies(Baseline):
    def __init__(self, data: PreparedData) -> None:
        self._frequencies = TrainingFrequencies(data)
        self.constants = self._frequencies.constants

    def over(self, model: Any, batch_size: int, autocast_dtype: torch.dtype | None) -> dict[str, Any]:
        return {"over_token_frequencies": self._frequencies.loss_over(model, batch_size, autocast_dtype)}


class ComparedLanguage(ComparedKind):
    """Language models: perplexity beside the loss, over token frequencies and pairs."""

    kind = LANGUAGE
    constants_field = "constants"
    performance = LanguageModelLoss()

    def baseline(self, data: PreparedData) -> Baseline:
        """Count the training tokens."""
        return _Frequencies(data)

    def first_batch(self, task: Pretraining) -> Mapping[str, Any]:
        """The first rows of training."""
        rows = self._first_rows(task)
        return {"input_ids": rows.input_ids, "position_ids": rows.position_ids, "use_cache": False}

    def gradient_batches(self, task: Pretraining) -> list[ModelBatch]:
        """The first rows of training."""
        return list(model_batches([self._first_rows(task)]))

    def measured_batches(self, task: Pretraining) -> list[ModelBatch]:
        """The first validation rows."""
        rows, size = np.arange(_num_measured_rows(task.data)), task.config.evaluation_batch_size
        device = default_device()
        batches = (task.data.validation.batch(rows[i : i + size]).to(device) for i in range(0, len(rows), size))
        return list(model_batches(batches))

    def validation_fields(self, validation: Any) -> dict[str, Any]:
        """Loss and perplexity."""
        return {"validation_loss": validation.mean, "perplexity": validation.perplexity}

    def data_facts(self, recipe: Recipe, data: PreparedData) -> dict[str, str]:
        """Text and tokenizer."""
        statistics = data.statistics
        return {
            "Training data": (
                f"{recipe.data.corpus}: {statistics.train.documents:,} documents, {statistics.train.tokens:,} tokens"
            ),
            "Validation data": (
                f"{recipe.data.validation_corpus or 'split off by document'}: {statistics.validation.documents:,} "
                f"documents, {statistics.validation.tokens:,} tokens"
            ),
            "Tokenizer": f"{recipe.data.tokenizer or 'byte-level BPE'}, {len(data.tokenizer):,} tokens",
        }

    def budget(self, recipe: Recipe, data: PreparedData) -> str:
        """Steps and token slots."""
        del data
        return (
            f"{recipe.last_step:,} steps of {recipe.batch_size} x {recipe.data.sequence_length} = "
            f"{recipe.last_step * recipe.tokens_per_step:,} token slots a run"
        )

    def measured_in_words(self, data: PreparedData) -> str:
        """Rows."""
        return (
            f"of the trained models, on the first {_num_measured_rows(data)} rows of the validation data; gradient "
            "norms of the models that training began with, on the first rows of the training data"
        )

    def constant_facts(self, baseline: Any) -> dict[str, str]:
        """Losses, and what was counted."""
        constants = baseline.constants
        return {
            "Token frequencies and pairs": (
                f"losses of {constants.token_frequencies:.4f} and {constants.token_pairs:.4f} nats per token on the "
                f"{constants.validation_tokens:,} predicted validation tokens, by counts of "
                f"{constants.counted_tokens:,} of {constants.train_tokens:,} predicted training tokens, with "
                "Witten-Bell smoothing (1991)"
            )
        }

    def _first_rows(self, task: Pretraining) -> Any:
        recipe = task.recipe
        rows = min(recipe.batch_size, _MEASURED_ROWS)
        return training_batch(task.data.train, 0, rows, recipe.seed).to(default_device())


def _num_measured_rows(data: TrainingData) -> int:
    return min(_MEASURED_ROWS, len(data.validation))
