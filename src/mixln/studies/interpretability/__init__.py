"""What norms do to the tools of interpretability: measures on request, a module for each with an `ENTRY`."""

from __future__ import annotations

from collections.abc import Sequence

from mixln.errors import InputError
from mixln.measure.batches import ModelBatch, first_tokens
from mixln.models.causal import is_causal_language_model
from mixln.report.series import Series
from mixln.studies.measuring import Computed, Found, Given


class Interpretability(Computed):
    """A measure of `interpretability_tokens`; what a model does not allow is left out, with a note that says why.

    Attributes:
        called: what it is called in the note.
    """

    called: str

    def is_wanted(self, given: Given) -> bool:
        """Whether it is asked for."""
        return given.config.interpretability_tokens > 0

    def compute(self, given: Given, batches: Sequence[ModelBatch]) -> Found:
        """Measure, or say why not."""
        if not is_causal_language_model(given.stack.model):
            return Found(
                [], ["Attribution, patching and entropy neurons need a language model, so they were left out."]
            )
        try:
            return Found(list(self.measured(given, first_tokens(batches, given.config.interpretability_tokens))))
        except InputError as error:
            return Found([], [f"No {self.called}: {error}."])

    def measured(self, given: Given, batches: Sequence[ModelBatch]) -> Sequence[Series]:
        """The series.

        Raises:
            InputError: the model does not allow it.
        """
        raise NotImplementedError
