"""The loss of a language model beside the losses that know nothing but token frequencies, or pairs of tokens."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from mixln.errors import InputError
from mixln.measure.batches import ModelBatch
from mixln.measure.estimates import DocumentSums, Estimates
from mixln.measure.frequencies import Floats, Predictions, cross_fitted_pair_losses, own_frequency_losses
from mixln.measure.observation import Measure, Observation
from mixln.measure.performance import token_cross_entropies
from mixln.measure.sums import no_tokens_error
from mixln.models.encoding import IGNORED_TARGET


@dataclass(frozen=True)
class FrequencyComparison:
    """Losses of the same tokens in nats per token, each of shape (), with intervals over documents.

    Attributes:
        model: of the model.
        token_frequencies: the entropy of the predicted tokens' own frequencies. A predictor that ignores what stands
            before a token cannot have a lower loss on these tokens, whatever it was trained on.
        token_pairs: of knowing which token follows which (bigrams), each document by the counts of other documents.
            None: there is one document, or the model is not given tokens.
        over_token_frequencies: `model` - `token_frequencies`, paired by document.
    """

    model: Estimates
    token_frequencies: Estimates
    token_pairs: Estimates | None
    over_token_frequencies: Estimates


class AgainstFrequencies(Measure):
    """Compares a language model with what token frequencies alone predict, on the tokens that it is measured on."""

    def __init__(self) -> None:
        self._predictions: list[Predictions] = []
        self._losses: list[torch.Tensor] = []
        self._vocabulary = 0
        self._has_tokens = True

    def see_output(self, output: Any, batch: ModelBatch) -> None:
        """Keep the loss of every predicted token.

        Raises:
            InputError: the batch has no targets, or the output no logits.
        """
        if batch.targets is None or not hasattr(output, "logits"):
            raise InputError("the loss of a language model needs a model with a head, and targets")
        predicted = batch.targets.cpu() != IGNORED_TARGET
        self._losses.append(token_cross_entropies(output.logits, batch.targets)[predicted])
        self._vocabulary = output.logits.shape[-1]

    def update(self, observation: Observation) -> None:
        """Keep what was predicted."""
        batch = observation.batch
        assert batch.targets is not None
        tokens = batch.arguments.get("input_ids")
        if tokens is None or tokens.shape != batch.targets.shape:
            tokens, self._has_tokens = batch.targets, False
        self._predictions.append(Predictions.of(tokens, batch.targets, batch.documents[:, None]))

    def found(self) -> FrequencyComparison:
        """The comparison.

        Raises:
            InputError: nothing was predicted.
        """
        if not sum(map(len, self._predictions)):
            raise no_tokens_error()
        predictions, losses = Predictions.joined(self._predictions), torch.cat(self._losses).numpy()
        own = own_frequency_losses(predictions)
        pairs = cross_fitted_pair_losses(predictions, self._vocabulary) if self._has_tokens else None

        def estimated(values: Floats) -> Estimates:
            sums = DocumentSums()
            sums.update_tokens(torch.from_numpy(values), torch.from_numpy(predictions.documents))
            return sums.estimate()

        return FrequencyComparison(
            estimated(losses), estimated(own), None if pairs is None else estimated(pairs), estimated(losses - own)
        )
